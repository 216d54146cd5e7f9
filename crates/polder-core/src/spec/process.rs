//! `polder.toml`: where the lake, the store and the sources are.

use std::collections::BTreeMap;
use std::num::NonZeroU32;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};

use super::EngineKind;
use crate::erasure::Span;
use crate::validation::Verdict;
use crate::{Result, SecretRef};

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
    /// The Airflow that DAGs of orgs which leave are taken out of; none when absent.
    #[serde(default)]
    pub airflow: Option<AirflowConfig>,
    /// Who is told of verdicts, by the names that table specs use.
    #[serde(default)]
    pub alerts: BTreeMap<String, AlertSpec>,
    /// A Trino that works beside this process; none when absent.
    #[serde(default)]
    pub trino: Option<TrinoConfig>,
    /// Where traces of requests and runs are sent; nowhere when absent.
    #[serde(default)]
    pub telemetry: Option<TelemetryConfig>,
}

impl ProcessConfig {
    /// Who carries out `optimize` of a table whose spec says `said`. Who ingests it: [`TrinoConfig::ingest`].
    pub fn engine(&self, said: Option<EngineKind>) -> EngineKind {
        let by_default = self.trino.as_ref().is_some_and(|trino| trino.default);
        said.unwrap_or(if by_default { EngineKind::Trino } else { EngineKind::Embedded })
    }
}

/// A Trino that has the lake among its catalogs.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TrinoConfig {
    /// The coordinator's address, `https://host:8443`; by `http://` no password is sent.
    pub url: String,
    /// The user whom Trino is told.
    #[serde(default = "own_name")]
    pub user: String,
    /// A reference to the user's password.
    #[serde(default)]
    pub password: Option<SecretRef>,
    /// The lake's name among Trino's catalogs.
    #[serde(default = "lake")]
    pub catalog: String,
    /// Whether it works on tables that name no engine, too.
    #[serde(default)]
    pub default: bool,
    /// Whether it ingests those of its tables that are read from PostgreSQL, beside optimizing them.
    #[serde(default)]
    pub ingest: bool,
}

fn lake() -> String {
    "lake".to_owned()
}

/// A collector of traces, which is called by OTLP over HTTP, in protobuf.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TelemetryConfig {
    /// `https://…/v1/traces`, as it is called; an `env:`/`file:` reference when it holds a secret.
    pub url: String,
    /// Headers of each call: a reference to the value of each.
    #[serde(default)]
    pub headers: BTreeMap<String, SecretRef>,
    /// The process's `service.name` in traces.
    #[serde(default = "own_name")]
    pub service_name: String,
    /// The share of traces that are sent, also of those that callers record: from 0 to 1.
    #[serde(default = "all")]
    #[schemars(range(min = 0.0, max = 1.0))]
    pub sample_ratio: f64,
    /// An address of this machine or of a private network may be called, by `http://` too.
    #[serde(default)]
    pub private: bool,
}

fn own_name() -> String {
    "polder".to_owned()
}

const fn all() -> f64 {
    1.0
}

/// A webhook that is told of verdicts (Standard Webhooks).
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AlertSpec {
    /// `https://…`; an `env:`/`file:` reference when it holds a secret.
    pub url: String,
    /// A reference to the secret that signs what is sent (`whsec_…`).
    pub secret: SecretRef,
    /// The verdicts that are told.
    #[serde(default = "failed")]
    pub on: Vec<Verdict>,
    /// Addresses of this machine and of private networks may be called, by `http://` too.
    #[serde(default)]
    pub private: bool,
}

fn failed() -> Vec<Verdict> {
    vec![Verdict::Failed]
}

/// How orgs leave, and for how long what tables keep less can be taken back.
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
    /// How long nothing is removed that a table is to keep no longer, and its earlier settings can be brought
    /// back: `24h`, `7d`; `0s` for not at all. `24h` when absent.
    pub undo: Option<String>,
    /// Copies that Polder does not reach (backups, replicas), as every certificate is to name them.
    pub backups: Vec<String>,
}

impl GovernanceConfig {
    /// How long what tables keep less can be taken back, in milliseconds.
    ///
    /// # Errors
    /// `spec.invalid` for what is no length of time.
    pub fn undo_ms(&self) -> Result<i64> {
        let text = self.undo.as_deref().unwrap_or(UNDO);
        let span: Result<Span> = text.parse();
        let Span(span) = span.map_err(|error| error.within("[governance] undo"))?;
        Ok(i64::try_from(span.as_millis()).unwrap_or(i64::MAX))
    }
}

/// As long as somebody who looks every day needs.
const UNDO: &str = "24h";

/// An Airflow with DAGs of orgs, made by Polder's provider: what an erasure takes out of it.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AirflowConfig {
    /// `https://…` of its API server, up to where `/api/v2` begins.
    pub url: String,
    /// Who signs in; not with `token`. It has to see, change and delete all DAGs with the tag `polder`.
    pub username: Option<String>,
    /// A reference to the password of `username`.
    pub password: Option<SecretRef>,
    /// A reference to a token that Airflow takes, for those who have none of it by a password.
    pub token: Option<SecretRef>,
    /// An address of this machine or of a private network may be called, by `http://` too.
    #[serde(default)]
    pub private: bool,
}

/// Where `polder serve` listens, and how callers show who they are.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ServerConfig {
    /// IP address and port; `[serve] listen` when absent.
    pub listen: Option<String>,
    /// How callers show who they are. When absent: by keys as soon as there is a key or a client.
    pub auth: Option<Auth>,
    /// Whose tokens are taken; for `auth = "oidc"`.
    pub oidc: Option<OidcConfig>,
    /// Processes that answer queries beside the server, one each at a time; as many as there are cores, and at
    /// least two, when absent. With 0 the server answers them itself, and a query that exhausts the memory or
    /// the stack ends it.
    pub query_processes: Option<usize>,
    /// How many requests one caller may send to `/v1` and `/mcp`, together.
    pub rate_limit: RateLimit,
    /// How many requests one caller may send to `/iceberg`: engines send many at once, and the default is
    /// above what they do.
    #[serde(deserialize_with = "catalog_rate_limit")]
    pub catalog_rate_limit: RateLimit,
    /// Where `polder worker` answers `/metrics`: IP address and port. Nowhere when absent.
    pub worker_metrics: Option<String>,
    /// Where `polder serve` speaks PostgreSQL's protocol: IP address and port. Nowhere when absent.
    pub postgres: Option<String>,
    /// The certificate of that door. One that others can reach has to have it.
    pub postgres_tls: Option<TlsConfig>,
}

/// A certificate and its key.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TlsConfig {
    /// A PEM file of the certificate and those that vouch for it, beside `polder.toml`.
    pub certificate: String,
    /// A reference to the private key in PEM.
    pub key: SecretRef,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            listen: None,
            auth: None,
            oidc: None,
            query_processes: None,
            rate_limit: RateLimit::default(),
            catalog_rate_limit: RateLimit::of_catalog(),
            worker_metrics: None,
            postgres: None,
            postgres_tls: None,
        }
    }
}

/// How many requests one caller may send; more are told when to come back.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RateLimit {
    /// Requests a second in the long run.
    #[schemars(range(min = 1))]
    pub per_second: u32,
    /// Requests at once.
    #[schemars(range(min = 1))]
    pub burst: u32,
}

impl RateLimit {
    /// Of `/iceberg`, where nothing is said.
    pub const fn of_catalog() -> Self {
        Self { per_second: 20_000, burst: 40_000 }
    }
}

impl Default for RateLimit {
    fn default() -> Self {
        Self { per_second: 50, burst: 200 }
    }
}

/// What is not said is as it is where nothing is.
fn catalog_rate_limit<'de, D: Deserializer<'de>>(said: D) -> Result<RateLimit, D::Error> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Said {
        per_second: Option<u32>,
        burst: Option<u32>,
    }
    let Said { per_second, burst } = Said::deserialize(said)?;
    let usual = RateLimit::of_catalog();
    Ok(RateLimit {
        per_second: per_second.unwrap_or(usual.per_second),
        burst: burst.unwrap_or(usual.burst),
    })
}

/// How callers show who they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Auth {
    /// By a key of `polder keys create`, or a token of one of `[serve.clients]`.
    Keys,
    /// Not at all: everybody is the operator. On a loopback address alone.
    None,
    /// By a token of the `OpenID` provider of `[server.oidc]`, or as under `keys`.
    Oidc,
}

/// An `OpenID` provider whose tokens `polder serve` takes.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct OidcConfig {
    /// `https://…`, exactly as the provider writes it; `http://` on a loopback address alone.
    pub issuer: String,
    /// Whom tokens have to be for (`aud`).
    pub audience: String,
    /// The claim that has the role: `operator`, `admin`, `writer`, `reader` or `agent`.
    #[serde(default = "roles_claim")]
    pub roles_claim: String,
    /// The claim that has the ids of the orgs: a list, or a text with spaces between them.
    #[serde(default = "orgs_claim")]
    pub orgs_claim: String,
    /// The claim that says who it is, for the audit log.
    #[serde(default = "subject_claim")]
    pub subject_claim: String,
}

fn roles_claim() -> String {
    "polder_role".to_owned()
}

fn orgs_claim() -> String {
    "polder_orgs".to_owned()
}

fn subject_claim() -> String {
    "sub".to_owned()
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
    /// Connections to it at the same time, of this process over all orgs; no limit when absent.
    #[serde(default)]
    pub max_connections: Option<NonZeroU32>,
}

/// A server that speaks MongoDB's protocol.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MongodbSource {
    /// A reference to `mongodb://…` or `mongodb+srv://…`.
    pub url: SecretRef,
    /// The database to read.
    pub database: String,
    /// Reads over a connection at the same time, of this process over all orgs; no limit when absent.
    #[serde(default)]
    pub max_connections: Option<NonZeroU32>,
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
    /// Tables ingested, validated or maintained at the same time, over all orgs.
    pub runs: usize,
    /// Of those that a server works on, runs of one org; all but one when absent, so that no org holds
    /// every place.
    pub runs_per_org: Option<usize>,
    /// Splits of one table read at the same time. Each holds one connection to its source.
    pub splits: usize,
    /// Memory for that in MB, shared by all runs at once.
    pub memory_mb: usize,
    /// Memory for one query in MB.
    pub query_memory_mb: usize,
    /// Memory that a query process of `polder serve` may have in MB, all in all but for stacks; four times
    /// `query_memory_mb`, and 512 more, when absent.
    pub query_process_memory_mb: Option<usize>,
}

impl Limits {
    /// Runs of one org that a server works on at the same time.
    pub fn runs_of_org(&self) -> usize {
        self.runs_per_org.unwrap_or(self.runs.max(1) - 1).max(1)
    }

    /// Memory of one query process in bytes. What a query holds beside what its operators count was measured
    /// to be up to three times as much.
    pub fn memory_of_query_process(&self) -> usize {
        let usual = self.query_memory_mb.saturating_mul(4).saturating_add(512);
        self.query_process_memory_mb.unwrap_or(usual).saturating_mul(1 << 20)
    }

    /// Memory of one run in bytes, where its org has no limit of its own.
    pub fn memory_of_run(&self) -> usize {
        (self.memory_mb << 20) / self.runs.max(1)
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            runs: 2,
            runs_per_org: None,
            splits: 2,
            memory_mb: 256,
            query_memory_mb: 512,
            query_process_memory_mb: None,
        }
    }
}
