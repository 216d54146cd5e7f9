//! `polder mcp`: the lake for one agent, over stdin and stdout.

use std::sync::Arc;

use clap::Args;
use polder_core::{Error, ErrorCode, OrgId, Principal, Result, SecretRef};
use rmcp::ServiceExt;

use crate::app::App;
use crate::exit;
use crate::mcp::{Agent, Door};

#[derive(Debug, Args)]
pub(crate) struct Mcp {
    /// The org whose data the agent sees; every org's, and the sources, without.
    #[arg(long, value_name = "ID")]
    org: Option<OrgId>,
    /// The `polder serve` of this lake, through which the agent may ask for tables if the key is a writer's.
    #[arg(long, value_name = "URL", requires = "key")]
    server: Option<String>,
    /// Where the agent's key for the server is, such as `env:POLDER_KEY`: never the key itself.
    // As text: what is no reference may be the key itself, which is not to be printed.
    #[arg(long, value_name = "REFERENCE", requires = "server")]
    key: Option<String>,
}

impl Mcp {
    pub(crate) async fn run(&self, app: App) -> Result<u8> {
        let door = self.door(&app).await?;
        let (lake, store) = (app.lake().await?, app.store().await?);
        let principal = self.org.clone().map_or(Principal::Operator, Principal::Org);
        let agent = Agent {
            engine: Arc::new(crate::cli::engine(&app, &lake)?),
            bootstraps: crate::cli::bootstraps(&app, &lake)?,
            who: crate::app::author(None).who,
            door,
            app: Arc::new(app),
            store,
            lake,
            principal,
        };
        let failed = |what: &str, cause: Box<dyn std::error::Error + Send + Sync>| {
            Error::new(ErrorCode::Internal, format!("the agent's session {what}")).caused_by(cause)
        };
        let session = agent.serve(rmcp::transport::stdio()).await;
        let session = session.map_err(|cause| failed("was not opened", cause.into()))?;
        tokio::select! {
            ended = session.waiting() => {
                ended.map_err(|cause| failed("ended badly", cause.into()))?;
                Ok(exit::OK)
            }
            _ = tokio::signal::ctrl_c() => Ok(exit::INTERRUPTED),
        }
    }

    /// The way to the server that is named.
    async fn door(&self, app: &App) -> Result<Option<Door>> {
        let (Some(server), Some(key)) = (&self.server, &self.key) else { return Ok(None) };
        let reference: SecretRef = key.parse().map_err(|error: Error| error.within("--key"))?;
        Door::there(server, &app.secret(&reference)?).await
    }
}
