//! `polder.toml`: where the lake, the store and the sources are.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::SecretRef;

/// The process configuration, `polder.toml`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ProcessConfig {
    pub lake: LakeConfig,
    #[serde(default)]
    pub catalog: CatalogConfig,
    pub store: StoreConfig,
    #[serde(default)]
    pub storage: StorageConfig,
    /// The outside systems, by the name pipelines use.
    #[serde(default)]
    pub sources: BTreeMap<String, SourceSpec>,
    #[serde(default)]
    pub limits: Limits,
    #[serde(default)]
    pub server: ServerConfig,
    #[serde(default)]
    pub serve: ServeConfig,
    #[serde(default)]
    pub governance: GovernanceConfig,
}

/// How orgs leave.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct GovernanceConfig {
    /// A reference to the private key that signs certificates, as `polder certificate keygen` writes
    /// it. When absent, one is made beside the store.
    pub signing_key: Option<SecretRef>,
    /// A reference to the secret that signs what `POST /v1/churn` takes (Standard Webhooks,
    /// `whsec_…`). Without it nothing is taken there.
    pub webhook_secret: Option<SecretRef>,
    /// How long an org stays fenced before it is erased, and can be brought back: `7d`, `12h`, `30m`.
    /// Nothing when absent.
    pub grace: Option<String>,
    /// How long runs that work for an org that leaves may take to notice and stop; `30s` when absent.
    pub drain: Option<String>,
    /// Copies that Polder does not reach (backups, replicas), as every certificate is to name them.
    pub backups: Vec<String>,
}

/// Where `polder serve` listens, and how callers show who they are.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ServerConfig {
    /// IP address and port; `[serve] listen` when absent.
    pub listen: Option<String>,
    /// How callers show who they are. When absent: by keys as soon as there is a key or a client.
    pub auth: Option<Auth>,
}

/// How callers show who they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Auth {
    /// By a key of `polder keys create`, or a token of one of `[serve.clients]`.
    Keys,
    /// Not at all: everybody is the operator. On a loopback address alone.
    None,
    /// By a token of an `OpenID` provider. Not there yet.
    Oidc,
}

/// What `polder serve` offers, and to whom.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ServeConfig {
    /// IP address and port. An address others can reach needs clients.
    pub listen: String,
    /// Who may call, by client id. Without any, everybody who reaches the port is the operator.
    pub clients: BTreeMap<String, ClientConfig>,
}

impl Default for ServeConfig {
    fn default() -> Self {
        Self { listen: "127.0.0.1:7070".to_owned(), clients: BTreeMap::new() }
    }
}

/// Somebody who may call `polder serve`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ClientConfig {
    /// A reference to the client's secret, of 16 characters or more.
    pub secret: SecretRef,
    /// The one org the client may see; every org and everything else when absent.
    #[serde(default)]
    pub org: Option<String>,
}

/// Where tables and their metadata live.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LakeConfig {
    /// A local folder or `s3://bucket/prefix`.
    pub warehouse: String,
    /// `sqlite://FILE` or `postgres://…` for the embedded catalog, `https://…` for an external Iceberg
    /// REST catalog, `glue://REGION` for AWS Glue; an `env:`/`file:` reference when it holds a password.
    pub catalog: String,
}

/// Catalogs that other systems run.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CatalogConfig {
    /// For an `http(s)://` catalog.
    #[serde(default)]
    pub rest: Option<RestCatalogConfig>,
    /// For a `glue://` catalog.
    #[serde(default)]
    pub glue: Option<GlueConfig>,
}

/// A Data Catalog of AWS Glue. Without keys the environment and the instance's profile are asked.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct GlueConfig {
    /// The API's address; AWS's own of the region when absent.
    #[serde(default)]
    pub endpoint: Option<String>,
    /// The AWS account whose catalog it is; the keys' own when absent.
    #[serde(default)]
    pub catalog_id: Option<String>,
    #[serde(default)]
    pub access_key: Option<SecretRef>,
    #[serde(default)]
    pub secret_key: Option<SecretRef>,
}

/// An external Iceberg REST catalog. Name `credential` or `token`, or neither.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RestCatalogConfig {
    /// Which of the server's warehouses; its own choice when absent.
    #[serde(default)]
    pub warehouse: Option<String>,
    /// A reference to `id:secret`, OAuth2 client credentials.
    #[serde(default)]
    pub credential: Option<SecretRef>,
    /// A reference to a bearer token.
    #[serde(default)]
    pub token: Option<SecretRef>,
    /// Where tokens are to be had; `<catalog>/v1/oauth/tokens` when absent.
    #[serde(default)]
    pub oauth2_server_uri: Option<String>,
    /// What the token is asked for; `catalog` when absent.
    #[serde(default)]
    pub scope: Option<String>,
}

/// Where run records live.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StoreConfig {
    /// `sqlite://FILE` or `postgres://…`; an `env:`/`file:` reference when it holds a password.
    pub url: String,
}

/// Object stores.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StorageConfig {
    /// For every `s3://` address.
    #[serde(default)]
    pub s3: Option<S3Config>,
}

/// An S3 account.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct S3Config {
    /// The server's address; AWS's own when absent.
    #[serde(default)]
    pub endpoint: Option<String>,
    #[serde(default = "default_region")]
    pub region: String,
    #[serde(default)]
    pub access_key: Option<SecretRef>,
    #[serde(default)]
    pub secret_key: Option<SecretRef>,
    /// `http://host/bucket/key` instead of `http://bucket.host/key`.
    #[serde(default)]
    pub path_style: bool,
    /// The role that `polder serve` takes on to hand clients keys for one table each.
    #[serde(default)]
    pub role_arn: Option<String>,
    /// The token service's address; AWS's own of the region when absent.
    #[serde(default)]
    pub sts_endpoint: Option<String>,
}

fn default_region() -> String {
    "us-east-1".to_owned()
}

/// One outside system.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum SourceSpec {
    Postgres(PostgresSource),
    Mongodb(MongodbSource),
    Files(FilesSource),
}

impl SourceSpec {
    /// The word of `type =`.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Postgres(_) => "postgres",
            Self::Mongodb(_) => "mongodb",
            Self::Files(_) => "files",
        }
    }
}

/// A PostgreSQL server.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PostgresSource {
    /// A reference to `postgres://user:password@host:port/database?sslmode=…`.
    pub url: SecretRef,
}

/// A server that speaks MongoDB's protocol.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MongodbSource {
    /// A reference to `mongodb://…` or `mongodb+srv://…`.
    pub url: SecretRef,
    /// The database to read.
    pub database: String,
}

/// Files below a local folder or in a bucket.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FilesSource {
    /// A local folder or `s3://bucket/prefix`.
    pub url: String,
}

/// What the process may use.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Tables ingested at the same time, over all orgs.
    pub runs: usize,
    /// Splits of one table read at the same time. Each holds one connection to its source.
    pub splits: usize,
    /// Memory for ingestion in MB, shared by all runs at once.
    pub memory_mb: usize,
    /// Memory for one query in MB.
    pub query_memory_mb: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { runs: 2, splits: 2, memory_mb: 256, query_memory_mb: 512 }
    }
}
