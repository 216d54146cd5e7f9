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
    /// AWS Glue's Data Catalog.
    Glue(GlueSettings),
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
}
