//! Who a caller is: certificates, service accounts' tokens, nobody; what reviews say of it, and who may become whom.

use anyhow::Result;
use rstest::rstest;
use serde_json::{Value, json};
use understudy_tests::{
    apiserver::ISSUER,
    node::{CertificateAuthority, Client, PodSpec, eventually},
};

use super::{Answer, Box, JSON};

const WHO: &str = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
const TOKEN_REVIEWS: &str = "/apis/authentication.k8s.io/v1/tokenreviews";
const ACCESS_REVIEWS: &str = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
const AUDIENCE: &str = "https://understudy.example";

fn who() -> Value {
    json!({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"})
}

fn bearer(token: &str) -> Vec<String> {
    vec!["--header".to_owned(), format!("Authorization: Bearer {token}")]
}

impl Box {
    /// curl's arguments to show a certificate of this CA.
    fn certificate(&self, authority: &CertificateAuthority, client: &Client) -> Result<Vec<String>> {
        let directory = self.node.directory().join("client");
        authority.client_identity(client)?.write(&directory)?;
        let file = |name: &str| directory.join(name).display().to_string();
        Ok([
            "--cert".to_owned(),
            file("tls.crt"),
            "--key".to_owned(),
            file("tls.key"),
        ]
        .into())
    }

    /// Who the server takes the bringer of these arguments of curl for.
    async fn who(&self, credentials: &[String]) -> Result<Answer> {
        self.ask_with(credentials, "POST", WHO, JSON, Some(&who())).await
    }

    async fn review(&self, token: &str, audiences: &[&str]) -> Result<Value> {
        let review = json!({
            "apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview",
            "spec": {"token": token, "audiences": audiences},
        });
        Ok(self.post(TOKEN_REVIEWS, &review).await?.object()["status"].take())
    }

    /// A pod under the powerless account, and a token of that account bound to it.
    async fn pod_with_token(&self, audiences: &[&str]) -> Result<(PodSpec, String)> {
        let pod = self.api.create_pod(PodSpec::named("own").account("powerless")).await?;
        let token = self
            .api
            .account_token("default", "powerless", audiences, Some("own"))
            .await?;
        Ok((pod, token))
    }

    async fn uid_of(&self, path: &str) -> Result<Value> {
        Ok(self.get(path).await?.object()["metadata"]["uid"].take())
    }
}

#[tokio::test]
async fn a_certificate_is_its_subject() -> Result<()> {
    let it = Box::new().await?;
    let client = Client::new("alice").group("dev").group("ops").uid("u-1");
    let shown = it.certificate(it.node.cluster_ca(), &client)?;
    let user = it.who(&shown).await?.object()["status"]["userInfo"].take();
    assert_eq!((&user["username"], &user["uid"]), (&json!("alice"), &json!("u-1")));
    assert_eq!(user["groups"], json!(["dev", "ops", "system:authenticated"]));
    let id = user["extra"]["authentication.kubernetes.io/credential-id"][0]
        .as_str()
        .unwrap_or_default();
    assert!(id.starts_with("X509SHA256="), "{user}");
    // It counts before a token, whosever that is.
    for token in [it.node.accounts().viewer.token.as_str(), "nobodys"] {
        let both = [shown.clone(), bearer(token)].concat();
        assert_eq!(it.who(&both).await?.object()["status"]["userInfo"]["username"], "alice");
    }
    Ok(())
}

#[rstest]
#[case::for_servers(Client::new("alice").for_servers())]
#[case::expired(Client::new("alice").expired())]
#[case::empty_uid(Client::new("alice").uid(""))]
#[tokio::test]
async fn a_certificate_that_is_no_good_is_worse_than_none(#[case] client: Client) -> Result<()> {
    let it = Box::new().await?;
    let shown = it.certificate(it.node.cluster_ca(), &client)?;
    it.ask_with(&shown, "GET", "/version", JSON, None)
        .await?
        .refused(401, "Unauthorized", "Unauthorized");
    // Beside a token that is somebody's it counts for nothing.
    let both = [shown, bearer(&it.node.accounts().viewer.token)].concat();
    let user = it.who(&both).await?.object()["status"]["userInfo"].take();
    assert_eq!(user["username"], "system:serviceaccount:prod:viewer");
    Ok(())
}

#[tokio::test]
async fn client_cas_are_published_and_change_under_a_running_server() -> Result<()> {
    let it = Box::new().await?;
    let other = CertificateAuthority::new("another")?;
    let shown = it.certificate(&other, &Client::new("bob"))?;
    it.ask_with(&shown, "GET", "/version", JSON, None)
        .await?
        .refused(401, "Unauthorized", "Unauthorized");

    let published = async || {
        let map = it
            .get("/api/v1/namespaces/kube-system/configmaps/extension-apiserver-authentication")
            .await?;
        let file = (map.code == 200).then(|| map.json()["data"]["client-ca-file"].take());
        Ok(file.and_then(|file| file.as_str().map(ToOwned::to_owned)))
    };
    let first: String = eventually("the client CA is published", published).await?;
    assert_eq!(first.trim(), it.node.cluster_ca().certificate().trim());

    let both = format!("{}{}", it.node.cluster_ca().certificate(), other.certificate());
    std::fs::write(it.api.client_ca_file(), &both)?;
    eventually("the new client CA is believed", async || {
        let answer = it.who(&shown).await?;
        Ok((answer.code == 201).then(|| answer.json()["status"]["userInfo"]["username"] == "bob"))
    })
    .await
    .map(|is_bob| assert!(is_bob))?;
    eventually("both client CAs are published", async || {
        let text = published().await?.unwrap_or_default();
        Ok((text.matches("BEGIN CERTIFICATE").count() == 2).then_some(()))
    })
    .await
}

#[tokio::test]
async fn without_a_credential_one_is_anonymous() -> Result<()> {
    let it = Box::new().await?;
    it.ask_with(&[], "GET", "/version", JSON, None).await?.object();
    it.ask_with(&[], "GET", "/api/v1/pods", JSON, None).await?.refused(
        403,
        "Forbidden",
        "pods is forbidden: User \"system:anonymous\" cannot list resource \"pods\" in API group \"\" at the cluster scope",
    );
    let answer = it.ask_with(&[], "POST", WHO, JSON, None).await?;
    assert_eq!(answer.code, 403, "{answer:?}");
    Ok(())
}

#[tokio::test]
async fn a_pods_token_says_which_pod() -> Result<()> {
    let it = Box::new().await?;
    let (pod, token) = it.pod_with_token(&[]).await?;
    let account = it
        .uid_of("/api/v1/namespaces/default/serviceaccounts/powerless")
        .await?;
    let user = it.who(&bearer(&token)).await?.object()["status"]["userInfo"].take();
    assert_eq!(user["username"], "system:serviceaccount:default:powerless");
    assert_eq!(user["uid"], account);
    assert_eq!(
        user["groups"],
        json!([
            "system:serviceaccounts",
            "system:serviceaccounts:default",
            "system:authenticated"
        ])
    );
    let extra = |key: &str| user["extra"][format!("authentication.kubernetes.io/{key}")][0].clone();
    assert_eq!(extra("pod-name"), "own");
    assert_eq!(
        Some(extra("pod-uid")),
        pod.given_uid().map(|uid| json!(uid.to_string()))
    );
    assert_eq!(extra("node-name"), "box");
    assert_eq!(extra("node-uid"), it.uid_of("/api/v1/nodes/box").await?);
    let id = extra("credential-id");
    assert!(id.as_str().is_some_and(|id| id.starts_with("JTI=")), "{user}");
    // The review of it says the same, and for whom it is.
    let review = it.review(&token, &[]).await?;
    assert_eq!(
        (&review["authenticated"], &review["audiences"]),
        (&json!(true), &json!([ISSUER]))
    );
    assert_eq!(review["user"], user);
    Ok(())
}

#[tokio::test]
async fn a_token_is_for_its_audiences() -> Result<()> {
    let it = Box::new().await?;
    let (_, token) = it.pod_with_token(&[AUDIENCE, "another"]).await?;
    // Not for the API server itself.
    it.who(&bearer(&token))
        .await?
        .refused(401, "Unauthorized", "Unauthorized");
    let review = it.review(&token, &["third", AUDIENCE]).await?;
    assert_eq!(
        (&review["authenticated"], &review["audiences"]),
        (&json!(true), &json!([AUDIENCE]))
    );
    for wrong in [&["third"][..], &[]] {
        let review = it.review(&token, wrong).await?;
        assert_ne!(review["authenticated"], true, "{review}");
        assert!(
            review["error"].as_str().is_some_and(|error| !error.is_empty()),
            "{review}"
        );
        assert_eq!(review["user"], json!({}));
    }
    // One of the token file is for the API server alone.
    let viewer = it.node.accounts().viewer.token.clone();
    assert_eq!(it.review(&viewer, &[]).await?["authenticated"], true);
    assert_eq!(
        it.review(&viewer, &[ISSUER, AUDIENCE]).await?["audiences"],
        json!([ISSUER])
    );
    assert_ne!(it.review(&viewer, &[AUDIENCE]).await?["authenticated"], true);
    Ok(())
}

#[tokio::test]
async fn a_token_dies_with_what_it_was_made_for() -> Result<()> {
    let it = Box::new().await?;
    let (pod, token) = it.pod_with_token(&[]).await?;
    let account = it
        .uid_of("/api/v1/namespaces/default/serviceaccounts/powerless")
        .await?;
    let claims = |uid: &Value, end: i64| {
        json!({
            "iss": ISSUER, "aud": [ISSUER], "iat": 1_700_000_000, "nbf": 1_700_000_000, "exp": end, "jti": "j",
            "sub": "system:serviceaccount:default:powerless",
            "kubernetes.io": {"namespace": "default", "serviceaccount": {"name": "powerless", "uid": uid}},
        })
    };
    let far = 4_000_000_000;
    let authenticated =
        async |token: &str| Ok::<_, anyhow::Error>(it.review(token, &[]).await?["authenticated"] == true);
    assert!(authenticated(&it.api.sign_token(&claims(&account, far))?).await?);
    assert!(
        !authenticated(&it.api.sign_token(&claims(&account, 1_700_000_600))?).await?,
        "it has expired"
    );
    let earlier = json!("00000000-0000-4000-8000-000000000000");
    assert!(
        !authenticated(&it.api.sign_token(&claims(&earlier, far))?).await?,
        "an earlier account's"
    );
    let (head, signature) = token.rsplit_once('.').unwrap();
    let forged = format!("{head}.{}", signature.chars().rev().collect::<String>());
    assert!(!authenticated(&forged).await?, "forged");

    assert!(authenticated(&token).await?);
    it.api.delete_pod(&pod).await?;
    eventually("the token has died with its pod", async || {
        Ok((!authenticated(&token).await?).then_some(()))
    })
    .await
}

#[tokio::test]
async fn what_a_token_request_is_refused_for() -> Result<()> {
    let it = Box::new().await?;
    let ask = async |spec: Value| {
        let request = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec});
        it.post("/api/v1/namespaces/default/serviceaccounts/powerless/token", &request)
            .await
    };
    ask(json!({"expirationSeconds": 60})).await?.refused(
        422,
        "Invalid",
        "TokenRequest.authentication.k8s.io \"\" is invalid: spec.expirationSeconds: Invalid value: 60: may not specify \
         a duration less than 10 minutes",
    );
    it.api.create_pod(PodSpec::named("other").account("default")).await?;
    ask(json!({"boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": "other"}}))
        .await?
        .refused(
            400,
            "BadRequest",
            "cannot bind token for serviceaccount \"powerless\" to pod running with different serviceaccount name.",
        );
    ask(json!({"boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": "none"}}))
        .await?
        .refused(404, "NotFound", "pods \"none\" not found");
    it.post(
        TOKEN_REVIEWS,
        &json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {}}),
    )
    .await?
    .refused(400, "BadRequest", "token is required for TokenReview in authentication");
    Ok(())
}

/// Rights of a user over one name of each kind that can be impersonated.
fn impersonator() -> Value {
    let rule = |group: &str, resource: &str, name: &str| json!({"apiGroups": [group], "resources": [resource], "resourceNames": [name], "verbs": ["impersonate"]});
    json!([
        rule("", "users", "bob"),
        rule("", "groups", "dev"),
        rule("", "serviceaccounts", "viewer"),
        rule("authentication.k8s.io", "uids", "u-7"),
        rule("authentication.k8s.io", "userextras/example.com/scope", "view"),
    ])
}

#[rstest]
#[case::user("", "users", "", "", "bob", true)]
#[case::another_user("", "users", "", "", "carol", false)]
#[case::group("", "groups", "", "", "dev", true)]
#[case::masters("", "groups", "", "", "system:masters", false)]
#[case::account("", "serviceaccounts", "", "prod", "viewer", true)]
#[case::another_account("", "serviceaccounts", "", "prod", "admin", false)]
#[case::uid("authentication.k8s.io", "uids", "", "", "u-7", true)]
#[case::uid_of_the_core_group("", "uids", "", "", "u-7", false)]
#[case::extra("authentication.k8s.io", "userextras", "example.com/scope", "", "view", true)]
#[case::extra_value("authentication.k8s.io", "userextras", "example.com/scope", "", "edit", false)]
#[case::extra_key("authentication.k8s.io", "userextras", "example.com/other", "", "view", false)]
#[tokio::test]
async fn reviews_say_who_may_become_whom(
    #[case] group: &str,
    #[case] resource: &str,
    #[case] subresource: &str,
    #[case] namespace: &str,
    #[case] name: &str,
    #[case] allowed: bool,
) -> Result<()> {
    let it = Box::new().await?;
    it.api.grant("alice", &impersonator()).await?;
    let review = json!({
        "apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview",
        "spec": {
            "user": "alice", "groups": ["system:authenticated"], "uid": "u-1", "extra": {"a": ["b"]},
            "resourceAttributes": {
                "verb": "impersonate", "group": group, "resource": resource, "subresource": subresource,
                "namespace": namespace, "name": name,
            },
        },
    });
    eventually("the review says what the rights say", async || {
        let answer = it.post(ACCESS_REVIEWS, &review).await?.object();
        Ok((answer["status"]["allowed"] == allowed).then_some(()))
    })
    .await
}

#[tokio::test]
async fn a_review_of_nobody_is_refused() -> Result<()> {
    let it = Box::new().await?;
    let review = json!({
        "apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview",
        "spec": {"resourceAttributes": {"verb": "get", "resource": "pods"}},
    });
    it.post(ACCESS_REVIEWS, &review).await?.refused(
        422,
        "Invalid",
        ".authorization.k8s.io \"\" is invalid: spec.user: Invalid value: \"\": at least one of user or \
         group must be specified",
    );
    Ok(())
}

#[tokio::test]
async fn a_uid_and_extra_are_put_on_with_the_right_to_each() -> Result<()> {
    let it = Box::new().await?;
    it.api.grant("alice", &impersonator()).await?;
    let alice = it.certificate(it.node.cluster_ca(), &Client::new("alice"))?;
    let become_ = async |headers: &[&str]| {
        let headers = headers
            .iter()
            .flat_map(|header| ["--header".to_owned(), (*header).to_owned()]);
        it.who(&alice.iter().cloned().chain(headers).collect::<Vec<_>>()).await
    };
    let bob = "Impersonate-User: bob";
    let uid = "Impersonate-Uid: u-7";
    let extra = "Impersonate-Extra-Example.com%2fscope: view";
    let user = eventually("alice has her rights", async || {
        let answer = become_(&[bob, "Impersonate-Group: dev", uid, extra]).await?;
        Ok((answer.code == 201).then(|| answer.json()["status"]["userInfo"].take()))
    })
    .await?;
    let expected = json!({
        "username": "bob", "uid": "u-7", "groups": ["dev", "system:authenticated"],
        "extra": {"example.com/scope": ["view"]},
    });
    assert_eq!(user, expected);
    for wrong in ["Impersonate-Uid: u-8", "Impersonate-Extra-Example.com%2fscope: edit"] {
        let answer = become_(&[bob, wrong]).await?;
        assert_eq!(
            (answer.code, &answer.json()["reason"]),
            (403, &json!("Forbidden")),
            "{wrong}: {answer:?}"
        );
    }
    let mark = it.api.mark().await?;
    become_(&[bob, uid, extra]).await?.object();
    let seen = it.api.seen_since(mark).await?;
    let seen = seen.iter().find(|seen| seen.user == "bob").unwrap();
    assert_eq!(
        (seen.uid.as_str(), seen.impersonator.as_deref()),
        ("u-7", Some("alice"))
    );
    assert_eq!(seen.extra["example.com/scope"], ["view"]);
    Ok(())
}
