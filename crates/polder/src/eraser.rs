//! Takes an org out of the lake and the store, from the notice to the certificate: the control plane's
//! record of the event joined to the data plane's steps (ADR 0019).
//!
//! Every step may be done again, by this process or another one: what the record says is done is done.

#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::Utc;
use polder_control::certificate::{self, SigningKey};
use polder_control::{Churn, ChurnState, Notice, Store, churn};
use polder_core::certificate::{Asked, Certificate, Deleted, KIND};
use polder_core::erasure::SWEEPS_MAX;
use polder_core::{
    AirflowDags, Authorized, Erasure, ErasureStep, Error, ErrorCode, Importer, OrgId, Principal,
    Remains, Result,
};
use polder_lake::Lake;
use polder_pipeline::{erase_step, record_erasure};
use tokio::sync::Notify;

use crate::airflow::Airflow;
use crate::output::{self, rfc3339};

/// How often the end of the org's runs is looked for.
const DRAIN_PAUSE: Duration = Duration::from_millis(100);
/// How often due erasures are looked for that nobody announced here.
const DUE_PAUSE: Duration = Duration::from_secs(10);

/// See the module. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Eraser {
    pub(crate) lake: Lake,
    pub(crate) store: Store,
    pub(crate) key: Key,
    /// How long an org stays fenced before it is erased.
    pub(crate) grace: Duration,
    /// How long its runs may take to stop.
    pub(crate) drain: Duration,
    /// Copies that certificates name.
    pub(crate) backups: Vec<String>,
    /// Where the org may have DAGs.
    pub(crate) airflow: Option<Airflow>,
    /// Who may be writing files of the org's beside its runs, and after their end.
    pub(crate) importer: Option<Arc<dyn Importer>>,
}

/// The key that signs certificates.
#[derive(Clone)]
pub(crate) enum Key {
    /// The configuration names it.
    Given(Arc<SigningKey>),
    /// In this file, which is made when it is needed first.
    In(PathBuf),
}

impl Key {
    /// Says so if it makes one.
    fn get(&self) -> Result<Arc<SigningKey>> {
        let path = match self {
            Self::Given(key) => return Ok(Arc::clone(key)),
            Self::In(path) => path,
        };
        let (key, made) = certificate::key_in(path)?;
        if made {
            output::note(&format!(
                "made the key that signs certificates: {}. Keep a copy of it; its public key is {}",
                path.display(),
                key.public_key()
            ));
        }
        Ok(Arc::new(key))
    }
}

impl Eraser {
    /// Takes a notice down and fences the org. One that is known already changes nothing.
    ///
    /// # Errors
    /// `lake.held` for an org under legal hold; `spec.invalid` for an event that was another org's.
    pub(crate) async fn take(&self, org: &Authorized<OrgId>, notice: &Notice) -> Result<Churn> {
        self.lake.check_hold(org, None, "fencing and erasing it").await?;
        let churn = churn::ask(&self.store, org, notice).await?;
        if churn.state != ChurnState::Waiting {
            return Ok(churn);
        }
        match self.fence(org, &churn).await {
            Err(held) if held.code() == ErrorCode::LakeHeld => {
                // As if it had never come: it may come again when the hold is released.
                churn::withdraw(&self.store, &churn.event_id).await?;
                Err(held)
            }
            fenced => fenced.map(|()| churn),
        }
    }

    async fn fence(&self, org: &Authorized<OrgId>, churn: &Churn) -> Result<()> {
        let by = self.lake.fence(org, &churn.event_id).await?;
        if by == churn.event_id {
            return Ok(());
        }
        let message = format!("org {} was fenced by event {by}", org.get());
        Err(Error::new(ErrorCode::ControlDenied, message)
            .detail(format!("this store knows event {}", churn.event_id))
            .hint("another control store has let it leave: see to it there"))
    }

    /// Erases a fenced org, whatever of it is done already. Returns the event with its certificate.
    pub(crate) async fn carry_out(&self, event_id: &str) -> Result<Churn> {
        let unknown = || Error::new(ErrorCode::ControlStore, "the churn's record is gone");
        let found = churn::find(&self.store, event_id).await?.ok_or_else(unknown)?;
        if !matches!(found.state, ChurnState::Waiting | ChurnState::Erasing) {
            return Ok(found);
        }
        // Before anything is removed: nothing goes that could not be certified.
        let key = self.key.get()?;
        let org = Principal::Operator.authorize(&found.org)?;
        // From here on it cannot be undone; whoever undid it first has won.
        churn::turn(&self.store, event_id, (ChurnState::Waiting, ChurnState::Erasing)).await?;
        let found = churn::find(&self.store, event_id).await?.ok_or_else(unknown)?;
        if found.state != ChurnState::Erasing {
            return Ok(found);
        }
        self.fence(&org, &found).await?;
        if found.erasure.is_none() {
            self.drain(&org).await?;
            if let Some(importer) = &self.importer {
                importer.stop(&org).await?;
            }
        }
        let mut erasure = found.erasure.clone().unwrap_or_default();
        while erasure.step != ErasureStep::Done {
            erasure = Box::pin(erase_step(&self.lake, &org, erasure)).await?;
            if erasure.step == ErasureStep::Forget {
                erasure.store_rows += churn::forget(&self.store, &org).await?;
            }
            churn::save(&self.store, event_id, &erasure).await?;
        }
        // Last: what is in the lake goes also while Airflow is away.
        if let Some(airflow) = &self.airflow {
            Box::pin(self.leave_airflow(airflow, &org, event_id, &mut erasure)).await?;
        }
        // A run that began as the fence was set may have left its record since.
        erasure.store_rows += churn::forget(&self.store, &org).await?;
        let signed = key.sign(self.certificate(&found, erasure)?)?;
        let document = churn::certify(&self.store, event_id, &signed.document()?).await?;
        record_erasure(&self.lake, &document).await?;
        churn::turn(&self.store, event_id, (ChurnState::Erasing, ChurnState::Erased)).await?;
        churn::find(&self.store, event_id).await?.ok_or_else(unknown)
    }

    /// Removes the org's DAGs, until Airflow lists none.
    async fn leave_airflow(
        &self,
        airflow: &Airflow,
        org: &Authorized<OrgId>,
        event_id: &str,
        erasure: &mut Erasure,
    ) -> Result<()> {
        let session = airflow.sign_in().await?;
        for _ in 0..SWEEPS_MAX {
            let found = session.dags(org).await?;
            let url = airflow.url().to_owned();
            let gone = erasure.airflow.get_or_insert_with(|| AirflowDags { url, dags: Vec::new() });
            gone.dags.extend(found.iter().cloned());
            gone.dags.sort_unstable();
            gone.dags.dedup();
            if let Some(verification) = erasure.verification.as_mut().filter(|_| found.is_empty()) {
                verification.airflow_dags = Some(0);
            }
            // What is found is written down before it goes.
            churn::save(&self.store, event_id, erasure).await?;
            if found.is_empty() {
                return Ok(());
            }
            for dag in &found {
                session.remove(dag).await?;
            }
        }
        let message = format!("DAGs of org {} keep appearing in Airflow", org.get());
        Err(Error::new(ErrorCode::ControlOrchestrator, message)
            .hint("give it a manifest without the org: `polder manifest` writes one"))
    }

    /// Waits for the org's runs to notice the fence and stop.
    async fn drain(&self, org: &Authorized<OrgId>) -> Result<()> {
        let began = Instant::now();
        while churn::running(&self.store, org).await? > 0 {
            if began.elapsed() >= self.drain {
                tracing::warn!(org = %org.get(), "runs without an end are taken for dead");
                return Ok(());
            }
            tokio::time::sleep(DRAIN_PAUSE).await;
        }
        Ok(())
    }

    fn certificate(&self, churn: &Churn, erasure: Erasure) -> Result<Certificate> {
        let incomplete = || Error::new(ErrorCode::Internal, "the erasure was not verified");
        let remains = self.remains(churn, &erasure);
        Ok(Certificate {
            kind: KIND.to_owned(),
            org: churn.org.to_string(),
            event_id: churn.event_id.clone(),
            asked: Asked {
                by: churn.asked_by.clone(),
                via: churn.via.clone(),
                reason: churn.reason.clone(),
                at: rfc3339(churn.asked_ms),
            },
            issued_at: rfc3339(Utc::now().timestamp_millis()),
            polder: env!("CARGO_PKG_VERSION").to_owned(),
            verification: erasure.verification.ok_or_else(incomplete)?,
            deleted: Deleted {
                folder: erasure.folder,
                found: erasure.found.unwrap_or_default(),
                sweeps: erasure.sweeps,
                catalog_entries: erasure.catalog_entries,
                store_rows: erasure.store_rows,
                management_rows: erasure.management_rows,
                airflow: erasure.airflow,
            },
            remains,
        })
    }

    fn remains(&self, churn: &Churn, erasure: &Erasure) -> Vec<Remains> {
        let says = |what: String, why: &str| Remains { what, why: why.to_owned() };
        let mut remains = erasure.remains.clone();
        remains.push(says(
            format!(
                "event {} in the control store and in management table erasures",
                churn.event_id
            ),
            "the audit entry: the org's id, who asked, counts and this certificate",
        ));
        remains.push(says(
            format!("namespace {} in the catalog, fenced and empty", churn.org.namespace()),
            "a late writer finds the org closed, and nobody uses its id by mistake",
        ));
        if let Some(folder) = erasure.folder.as_ref().filter(|folder| folder.starts_with("file:")) {
            remains.push(says(
                format!("an empty file at {folder}"),
                "a late writer cannot make the folder again",
            ));
        }
        remains.push(says(
            "records of legal holds in the control store, if there were any".to_owned(),
            "proof that they were kept",
        ));
        if let Some(airflow) = &erasure.airflow {
            remains.push(says(
                format!(
                    "the audit log of Airflow at {}, and log files of its workers",
                    airflow.url
                ),
                "Airflow's API removes neither; they name DAGs and tables, and hold no rows",
            ));
            remains.push(says(
                "the manifest and the files that Airflow makes DAGs from".to_owned(),
                "they are the operator's; `polder manifest` leaves the org out from its fence on",
            ));
        }
        remains.push(says(
            "what `polder export` wrote to folders that its callers named".to_owned(),
            "Polder does not know where it is, or was copied to",
        ));
        remains.push(says(
            "the org's rows in the sources".to_owned(),
            "Polder only reads them: whoever runs the sources removes them there",
        ));
        let backups = self.backups.iter();
        remains.extend(backups.map(|backup| {
            says(backup.clone(), "a copy that Polder does not reach, named by the operator")
        }));
        remains
    }

    /// Brings an org back from which nothing was removed yet.
    ///
    /// # Errors
    /// `spec.invalid` if there is no such org.
    pub(crate) async fn undo(&self, org: &Authorized<OrgId>) -> Result<Churn> {
        let found = churn::latest(&self.store, org).await?.ok_or_else(|| not_leaving(org))?;
        let step = (ChurnState::Waiting, ChurnState::Undone);
        let turned = churn::turn(&self.store, &found.event_id, step).await?;
        if !turned && found.state != ChurnState::Undone {
            let message =
                format!("org {} is {}: it cannot be brought back", org.get(), found.state.as_str());
            return Err(Error::new(ErrorCode::SpecInvalid, message));
        }
        // Also after an interruption between the two.
        if self.lake.fenced_by(org).await?.as_ref() == Some(&found.event_id) {
            self.lake.lift_fence(org).await?;
        }
        Ok(Churn { state: ChurnState::Undone, ..found })
    }

    /// Lets the id of an erased org be used anew.
    ///
    /// # Errors
    /// `spec.invalid` if the org is not erased.
    pub(crate) async fn release(&self, org: &Authorized<OrgId>) -> Result<Churn> {
        let found = churn::latest(&self.store, org).await?.ok_or_else(|| not_leaving(org))?;
        if !matches!(found.state, ChurnState::Erased | ChurnState::Released) {
            let message = format!("org {} is {}, not erased", org.get(), found.state.as_str());
            return Err(Error::new(ErrorCode::SpecInvalid, message));
        }
        if self.lake.fenced_by(org).await?.as_ref() == Some(&found.event_id) {
            self.lake.release_id(org).await?;
        }
        let step = (ChurnState::Erased, ChurnState::Released);
        churn::turn(&self.store, &found.event_id, step).await?;
        Ok(Churn { state: ChurnState::Released, ..found })
    }

    /// Carries out what is due, whenever woken and from time to time. Never ends.
    pub(crate) async fn erase_what_is_due(&self, wake: &Notify) {
        loop {
            match churn::due(&self.store).await {
                Ok(due) => {
                    for churn in due {
                        let (event, org) = (&churn.event_id, &churn.org);
                        match Box::pin(self.carry_out(event)).await {
                            Ok(_) => tracing::info!(%org, event, "the org is erased"),
                            Err(error) => {
                                tracing::error!(%org, event, code = %error.code(), "the org is not erased yet: {error}");
                            }
                        }
                    }
                }
                Err(error) => tracing::error!(code = %error.code(), "{error}"),
            }
            let _ = tokio::time::timeout(DUE_PAUSE, wake.notified()).await;
        }
    }
}

fn not_leaving(org: &Authorized<OrgId>) -> Error {
    Error::new(ErrorCode::SpecInvalid, format!("org {} is not leaving", org.get()))
}
