//! `polder mcp`: the lake for one agent, over stdin and stdout.

use std::sync::Arc;

use clap::Args;
use polder_core::{Error, ErrorCode, OrgId, Principal, Result};
use rmcp::ServiceExt;

use crate::app::App;
use crate::exit;
use crate::mcp::Agent;

#[derive(Debug, Args)]
pub(crate) struct Mcp {
    /// The org whose data the agent sees; every org's, and the sources, without.
    #[arg(long, value_name = "ID")]
    org: Option<OrgId>,
}

impl Mcp {
    pub(crate) async fn run(&self, app: App) -> Result<u8> {
        let (lake, store) = (app.lake().await?, app.store().await?);
        let principal = self.org.clone().map_or(Principal::Operator, Principal::Org);
        let agent = Agent {
            engine: Arc::new(crate::cli::engine(&app, &lake)?),
            bootstraps: crate::cli::bootstraps(&app, &lake)?,
            who: crate::app::author(None).who,
            door: None,
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
}
