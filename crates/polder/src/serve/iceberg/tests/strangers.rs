//! Who tries secrets at the token endpoint.

use std::net::SocketAddr;

use axum::extract::ConnectInfo;

use super::*;

#[tokio::test]
async fn an_address_that_tries_secrets_is_slowed_down_and_nobody_with_a_good_one() {
    let catalog = Catalog::with_clients(Database::Sqlite).await;
    let ask = async |address: [u8; 4], secret: &str| {
        let form = format!("grant_type=client_credentials&client_id=op&client_secret={secret}");
        let request = Request::post("/v1/oauth/tokens")
            .header("content-type", "application/x-www-form-urlencoded")
            .extension(ConnectInfo(SocketAddr::from((address, 4000))));
        let request = request.body(Body::from(form)).unwrap();
        catalog.routes.clone().oneshot(request).await.unwrap().into_parts().0
    };
    let wrong = "0123456789abcdeg";
    let mut last = ask([192, 0, 2, 1], wrong).await;
    assert_eq!(last.status, StatusCode::UNAUTHORIZED);
    for _ in 0..60 {
        last = ask([192, 0, 2, 1], wrong).await;
    }
    assert_eq!(last.status, StatusCode::TOO_MANY_REQUESTS);
    assert!(last.headers.contains_key("retry-after"));
    let good = ask([192, 0, 2, 1], SECRET).await;
    assert_eq!(good.status, StatusCode::OK, "a proxy has one address for all");
    assert_eq!(ask([192, 0, 2, 2], SECRET).await.status, StatusCode::OK);
    assert_eq!(ask([192, 0, 2, 2], wrong).await.status, StatusCode::UNAUTHORIZED);
}
