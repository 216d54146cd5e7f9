//! The row that says that an org was erased.

use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use chrono::DateTime;
use futures::TryStreamExt;
use polder_core::management::ERASURES;
use polder_core::{Error, ErrorCode, Principal, Result, SignedCertificate};
use polder_lake::{CmpOp, Lake, Literal, Predicate, ScanRequest};

/// Records an erasure by its certificate's document in management table `erasures`, once.
pub async fn record_erasure(lake: &Lake, document: &str) -> Result<()> {
    let signed = SignedCertificate::parse(document)?;
    let by = Principal::Operator;
    if let Some(table) = lake.management_table(&by, ERASURES.name).await? {
        let filter = Predicate::Cmp {
            column: "event_id".to_owned(),
            op: CmpOp::Eq,
            value: Literal::String(signed.certificate.event_id.clone()),
        };
        let columns = Some(vec!["event_id".to_owned()]);
        let mut rows = table.read(ScanRequest { snapshot: None, filter, columns }).await?;
        while let Some(batch) = rows.try_next().await? {
            if batch.num_rows() > 0 {
                return Ok(());
            }
        }
    }
    lake.record(&by, &ERASURES, row(&signed, document)?).await
}

fn row(signed: &SignedCertificate, document: &str) -> Result<RecordBatch> {
    let certificate = &signed.certificate;
    let (asked, deleted) = (&certificate.asked, &certificate.deleted);
    let text = |text: &str| -> ArrayRef { Arc::new(StringArray::from(vec![text])) };
    let count = |count: u64| -> ArrayRef { Arc::new(Int64Array::from(vec![count as i64])) };
    let time = |text: &str| -> Result<ArrayRef> {
        let time = DateTime::parse_from_rfc3339(text).map_err(|cause| {
            Error::new(ErrorCode::Internal, "a certificate's time cannot be read").caused_by(cause)
        })?;
        let micros = TimestampMicrosecondArray::from(vec![time.timestamp_micros()]);
        Ok(Arc::new(micros.with_timezone("+00:00")))
    };
    let columns = vec![
        text(&certificate.org),
        text(&certificate.event_id),
        text(&asked.by),
        text(&asked.via),
        Arc::new(StringArray::from(vec![asked.reason.as_deref()])),
        time(&asked.at)?,
        time(&certificate.issued_at)?,
        count(deleted.found.objects),
        count(deleted.found.bytes),
        count(certificate.remains.len() as u64),
        text(document),
    ];
    RecordBatch::try_new(ERASURES.schema().to_arrow(), columns).map_err(|cause| {
        Error::new(ErrorCode::Internal, "an erasure cannot be recorded").caused_by(cause)
    })
}
