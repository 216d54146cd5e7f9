//! What the lake needs to know to open. Reading it from a file is the control plane's work.

use secrecy::SecretString;

/// Where tables and their catalog live.
#[derive(Clone, Debug)]
pub struct LakeSettings {
    /// An absolute local folder or `s3://bucket/prefix`.
    pub warehouse: String,
    pub catalog: CatalogSettings,
    /// For an `s3://` warehouse.
    pub s3: Option<S3Settings>,
}

/// Who keeps the tables' metadata.
#[derive(Clone, Debug)]
pub enum CatalogSettings {
    /// The embedded catalog, by its database: `sqlite://PATH` or `postgres://…`.
    Sql(SecretString),
    /// An external Iceberg REST catalog.
    Rest(RestSettings),
    /// AWS Glue's Data Catalog.
    Glue(GlueSettings),
}

/// An external Iceberg REST catalog, and how to show it who calls.
#[derive(Clone, Debug, Default)]
pub struct RestSettings {
    /// The catalog's address, `https://host/path`: what stands in front of `/v1/config`.
    pub uri: String,
    /// Which of the server's warehouses; its own choice when absent.
    pub warehouse: Option<String>,
    /// `id:secret` of OAuth2 client credentials.
    pub credential: Option<SecretString>,
    /// A bearer token, for catalogs that hand out such by other ways.
    pub token: Option<SecretString>,
    /// Where tokens are to be had; `<uri>/v1/oauth/tokens` when absent.
    pub oauth2_server_uri: Option<String>,
    /// What the token is asked for; `catalog` when absent.
    pub scope: Option<String>,
}

/// A Data Catalog of AWS Glue. Without keys the usual places are asked (environment, instance
/// profile).
#[derive(Clone, Debug, Default)]
pub struct GlueSettings {
    pub region: String,
    /// The API's address; AWS's own of the region when absent.
    pub endpoint: Option<String>,
    /// The account whose catalog it is; the keys' own when absent.
    pub catalog_id: Option<String>,
    pub access_key: Option<SecretString>,
    pub secret_key: Option<SecretString>,
}

/// An S3 account. Without keys the usual places are asked (environment, instance profile).
#[derive(Clone, Debug, Default)]
pub struct S3Settings {
    /// The server's address; AWS's own when absent.
    pub endpoint: Option<String>,
    pub region: String,
    pub access_key: Option<SecretString>,
    pub secret_key: Option<SecretString>,
    /// `http://host/bucket/key` instead of `http://bucket.host/key`.
    pub path_style: bool,
    /// The role that a served catalog takes on to hand out keys for single tables.
    pub role_arn: Option<String>,
    /// Where roles are taken on; AWS's own service of the region when absent.
    pub sts_endpoint: Option<String>,
}
