//! Stores that know no conditional put. They answer one with 501 Not Implemented, as S3 itself did before
//! August 2024; `object_store` would take that for a failure that passes, and repeat the request for as
//! long as it repeats any.

use std::error::Error as StdError;
use std::fmt::{self, Display};

use async_trait::async_trait;
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpService,
    ReqwestConnector,
};

/// The conditions of puts, as headers.
const CONDITIONS: [&str; 2] = ["if-none-match", "if-match"];
const NOT_IMPLEMENTED: u16 = 501;

/// `object_store`'s own transport, but for conditional puts that the store knows nothing of.
#[derive(Debug, Default)]
pub(super) struct Connector(ReqwestConnector);

impl HttpConnector for Connector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(Transport(self.0.connect(options)?)))
    }
}

#[derive(Debug)]
struct Transport(HttpClient);

#[async_trait]
impl HttpService for Transport {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let conditional = request.method().as_str() == "PUT"
            && CONDITIONS.iter().any(|name| request.headers().contains_key(*name));
        let response = self.0.execute(request).await?;
        if conditional && response.status().as_u16() == NOT_IMPLEMENTED {
            // Of a kind that is not repeated.
            return Err(HttpError::new(HttpErrorKind::Unknown, Unconditional));
        }
        Ok(response)
    }
}

/// Why nothing was written.
#[derive(Debug)]
struct Unconditional;

impl Display for Unconditional {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the store knows no conditional put")
    }
}

impl StdError for Unconditional {}

/// Whether a put failed, and wrote nothing, because the store knows no conditions.
pub(crate) fn lacks_conditions(error: &object_store::Error) -> bool {
    if matches!(error, object_store::Error::NotImplemented { .. }) {
        return true;
    }
    let mut cause: Option<&(dyn StdError + 'static)> = Some(error);
    while let Some(found) = cause {
        if found.is::<Unconditional>() {
            return true;
        }
        cause = found.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use object_store::aws::AmazonS3Builder;
    use object_store::path::Path;
    use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutOptions, UpdateVersion};
    use reqwest::StatusCode;

    use super::*;

    /// A server that answers everything alike, and counts.
    #[derive(Clone, Debug)]
    struct Server(StatusCode, Arc<AtomicUsize>);

    #[async_trait]
    impl HttpService for Server {
        async fn call(&self, _: HttpRequest) -> Result<HttpResponse, HttpError> {
            self.1.fetch_add(1, Ordering::SeqCst);
            let mut response = HttpResponse::new(String::new().into());
            *response.status_mut() = self.0;
            Ok(response)
        }
    }

    impl HttpConnector for Server {
        fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
            Ok(HttpClient::new(Transport(HttpClient::new(self.clone()))))
        }
    }

    fn store(server: &Server) -> impl ObjectStore {
        let builder = AmazonS3Builder::new().with_bucket_name("b").with_region("r");
        let builder = builder.with_access_key_id("id").with_secret_access_key("secret");
        builder.with_http_connector(server.clone()).build().expect("store")
    }

    #[tokio::test]
    async fn a_conditional_put_that_is_not_implemented_is_sent_once() {
        let server = Server(StatusCode::NOT_IMPLEMENTED, Arc::default());
        let (store, path) = (store(&server), Path::from("x"));
        let version = UpdateVersion { e_tag: Some("\"1\"".to_owned()), version: None };
        for mode in [PutMode::Create, PutMode::Update(version)] {
            let sent = server.1.load(Ordering::SeqCst);
            let options = PutOptions { mode, ..PutOptions::default() };
            let put = store.put_opts(&path, "1".into(), options).await;
            let error = put.expect_err("not implemented");
            assert!(lacks_conditions(&error), "{error:?}");
            assert_eq!(server.1.load(Ordering::SeqCst), sent + 1);
        }
    }

    #[tokio::test]
    async fn other_refusals_are_not_about_conditions() {
        for status in [StatusCode::PRECONDITION_FAILED, StatusCode::FORBIDDEN] {
            let (server, path) = (Server(status, Arc::default()), Path::from("x"));
            let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
            let put = store(&server).put_opts(&path, "1".into(), options).await;
            assert!(!lacks_conditions(&put.expect_err("refused")), "{status}");
            let put = store(&server).put(&path, "1".into()).await;
            assert!(!lacks_conditions(&put.expect_err("refused")), "{status}");
        }
    }
}
