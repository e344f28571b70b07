//! Each fault does what it says, and no more often than it says.

use std::time::Duration;

use http::{Method, Response};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use rstest::rstest;
use tokio::time::timeout;
use understudy_tests::apiserver::{Fault, FaultAction};

use crate::{
    ADMIN, Fixture,
    client::{Client, Version, bearer, request},
};

const PODS: &str = "/api/v1/namespaces/default/pods";

async fn list(client: &mut Client) -> Result<Response<Incoming>, hyper::Error> {
    let token = bearer(ADMIN);
    client
        .send(request(Method::GET, PODS, &[("authorization", &token)], ""))
        .await
}

async fn with_fault(action: FaultAction, version: Version) -> (Fixture, Client) {
    let fixture = Fixture::start().await;
    let fault = Fault::always(action).on_path("/api/").times(1);
    fixture.control.inject(&fault).await.unwrap();
    let client = Client::connect(&fixture, version).await;
    (fixture, client)
}

#[rstest]
#[case(FaultAction::Status { code: 500, message: "broken".to_owned() }, 500)]
#[case(FaultAction::Status { code: 401, message: "no".to_owned() }, 401)]
#[case(FaultAction::Redirect { location: "https://elsewhere/".to_owned() }, 302)]
#[tokio::test]
async fn answers(
    #[values(Version::Http1, Version::Http2)] version: Version,
    #[case] action: FaultAction,
    #[case] code: u16,
) {
    let (_fixture, mut client) = with_fault(action, version).await;
    let response = list(&mut client).await.unwrap();
    assert_eq!(response.status(), code);
    assert_eq!(response.headers().contains_key("location"), code == 302);
    response.into_body().collect().await.unwrap();
    assert_eq!(list(&mut client).await.unwrap().status(), 200);
}

#[rstest]
#[tokio::test]
async fn a_reset_breaks_the_connection(#[values(Version::Http1, Version::Http2)] version: Version) {
    let (_fixture, mut client) = with_fault(FaultAction::Reset, version).await;
    let error = list(&mut client).await.unwrap_err();
    let text = format!("{error:?}");
    assert!(text.contains("ConnectionReset"), "{text}");
}

#[rstest]
#[tokio::test]
async fn a_body_dies_where_it_was_told(#[values(Version::Http1, Version::Http2)] version: Version) {
    let (_fixture, mut client) = with_fault(FaultAction::DieMidBody { after: 10 }, version).await;
    let mut body = list(&mut client).await.unwrap().into_body();
    let first = body.frame().await.unwrap().unwrap().into_data().unwrap();
    assert_eq!(first.len(), 10);
    assert!(body.frame().await.unwrap().is_err());
}

#[tokio::test]
async fn a_stalled_request_gets_nothing() {
    let (fixture, mut client) = with_fault(FaultAction::Stall, Version::Http2).await;
    assert!(timeout(Duration::from_millis(200), list(&mut client)).await.is_err());
    // Others on the connection aren't held up.
    assert_eq!(list(&mut client).await.unwrap().status(), 200);
    fixture.control.reset_connections().await.unwrap();
    assert!(list(&mut client).await.is_err());
}

#[tokio::test]
async fn going_away_lets_the_open_request_end() {
    let (_fixture, mut client) = with_fault(FaultAction::GoAway, Version::Http2).await;
    let response = list(&mut client).await.unwrap();
    assert_eq!(response.status(), 200);
    response.into_body().collect().await.unwrap();
    let ended = async {
        while list(&mut client).await.is_ok() {
            tokio::task::yield_now().await;
        }
    };
    timeout(Duration::from_secs(5), ended)
        .await
        .expect("the connection ends");
}

#[tokio::test]
async fn faults_are_taken_back() {
    let fixture = Fixture::start().await;
    let fault = Fault::always(FaultAction::Status {
        code: 503,
        message: String::new(),
    });
    fixture.control.inject(&fault).await.unwrap();
    let mut client = Client::connect(&fixture, Version::Http1).await;
    let response = list(&mut client).await.unwrap();
    assert_eq!(response.status(), 503);
    response.into_body().collect().await.unwrap();
    fixture.control.clear_faults().await.unwrap();
    assert_eq!(list(&mut client).await.unwrap().status(), 200);
}
