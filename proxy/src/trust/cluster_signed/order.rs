//! One `CertificateSigningRequest` from its making to its removal.

use std::{collections::BTreeMap, time::Duration};

use futures_util::{StreamExt, pin_mut};
use k8s_openapi::{
    ByteString,
    api::certificates::v1::{
        CertificateSigningRequest, CertificateSigningRequestCondition, CertificateSigningRequestSpec,
    },
    apimachinery::pkg::apis::meta::v1::Time,
};
use kube::{
    Api, Client,
    api::{DeleteParams, ObjectMeta, PostParams},
    core::Status,
    runtime::{WatchStreamExt, watcher::watch_object},
};
use tokio::{runtime::Handle, time};

use super::{
    request::{Drawn, Signed},
    standing::Standing,
};
use crate::{
    clock::Clock,
    trust::{
        TrustError,
        ask::{MANAGED_BY, MANAGER, ask, unless},
        names::ServedNames,
    },
};

/// The lifetime that is asked for. The signer may give less.
const LIFETIME: Duration = Duration::from_hours(24 * 7);
/// An approved request that isn't signed by then is complained of.
const SIGNER_PATIENCE: Duration = Duration::from_secs(30);
/// How often an approval is tried anew when another's write came first.
const ATTEMPTS: usize = 5;

const APPROVED: &str = "Approved";
const DENIED: &str = "Denied";
const FAILED: &str = "Failed";

/// Where certificates are asked for.
pub(super) struct Orders {
    api: Api<CertificateSigningRequest>,
    node_name: String,
    signer: String,
}

impl Orders {
    pub(super) fn new(client: Client, node_name: String, signer: String) -> Self {
        Self {
            api: Api::all(client),
            node_name,
            signer,
        }
    }

    pub(super) fn signer(&self) -> &str {
        &self.signer
    }

    /// Asks for a certificate and waits for it, for as long as that takes. Cancelled, it withdraws the request.
    pub(super) async fn fulfil(
        &self,
        names: &ServedNames,
        clock: &Clock,
        standing: &Standing,
    ) -> Result<Signed, TrustError> {
        let drawn = Drawn::new(&self.node_name, &self.signer, names)?;
        let filed = self.file(&drawn).await?;
        let by_us = match self.approve(&filed, clock).await {
            Ok(()) => true,
            Err(TrustError::Forbidden { message, .. }) => {
                tracing::warn!(
                    request = filed.name,
                    answer = message,
                    "the agent may not approve its own certificate: run `kubectl certificate approve {}`",
                    filed.name
                );
                standing.trouble(format!(
                    "waiting for approval: run `kubectl certificate approve {}`",
                    filed.name
                ));
                false
            }
            Err(error) => return Err(error),
        };
        let chain = self.signed(&filed, by_us, standing).await?;
        drawn.accept(&chain, names, clock.now(), |flaw| TrustError::Unfit {
            request: filed.name.clone(),
            signer: self.signer.clone(),
            flaw,
        })
    }

    async fn file(&self, drawn: &Drawn) -> Result<Filed, TrustError> {
        let (label, value) = MANAGED_BY;
        let request = CertificateSigningRequest {
            metadata: ObjectMeta {
                generate_name: Some(format!("{MANAGER}-{}-", self.node_name)),
                labels: Some(BTreeMap::from([(label.to_owned(), value.to_owned())])),
                ..ObjectMeta::default()
            },
            spec: CertificateSigningRequestSpec {
                request: ByteString(drawn.pem.clone().into_bytes()),
                signer_name: self.signer.clone(),
                expiration_seconds: i32::try_from(LIFETIME.as_secs()).ok(),
                usages: Some(vec!["digital signature".to_owned(), "server auth".to_owned()]),
                ..CertificateSigningRequestSpec::default()
            },
            ..CertificateSigningRequest::default()
        };
        let terms = PostParams::default();
        let made = ask(
            || "create CertificateSigningRequests".to_owned(),
            self.api.create(&terms, &request),
        );
        let made = made.await?;
        let name = made.metadata.name.clone().unwrap_or_default();
        tracing::info!(request = name, signer = self.signer, "asked for a certificate");
        Ok(Filed {
            api: self.api.clone(),
            name,
            made,
        })
    }

    /// Approves the request, unless somebody has decided already.
    async fn approve(&self, filed: &Filed, clock: &Clock) -> Result<(), TrustError> {
        let what = || format!("approve CertificateSigningRequests of the signer {}", self.signer);
        let mut request = filed.made.clone();
        for _ in 0..ATTEMPTS {
            if [APPROVED, DENIED, FAILED]
                .iter()
                .any(|kind| condition(&request, kind).is_some())
            {
                return Ok(());
            }
            let now = Time(clock.now());
            let approved = CertificateSigningRequestCondition {
                type_: APPROVED.to_owned(),
                status: "True".to_owned(),
                reason: Some("UnderstudyServing".to_owned()),
                message: Some("The agent on this node asked for it, to serve tagged pods with.".to_owned()),
                last_update_time: Some(now.clone()),
                last_transition_time: Some(now),
            };
            let status = request.status.get_or_insert_default();
            status.conditions.get_or_insert_default().push(approved);
            let terms = PostParams::default();
            let question = self.api.replace_subresource("approval", &filed.name, &terms, &request);
            let question = async { unless(question.await, Status::is_conflict) };
            if ask(what, question).await?.is_some() {
                return Ok(());
            }
            request = ask(|| format!("get {filed}"), self.api.get(&filed.name)).await?;
        }
        Err(TrustError::Contended(filed.to_string()))
    }

    /// Waits for the certificate.
    async fn signed(&self, filed: &Filed, by_us: bool, standing: &Standing) -> Result<Vec<u8>, TrustError> {
        let turned_down = |outcome, condition: &CertificateSigningRequestCondition| TrustError::TurnedDown {
            request: filed.name.clone(),
            outcome,
            message: condition
                .message
                .clone()
                .or_else(|| condition.reason.clone())
                .unwrap_or_default(),
        };
        let states = watch_object(self.api.clone(), &filed.name).default_backoff();
        pin_mut!(states);
        let patience = time::sleep(SIGNER_PATIENCE);
        pin_mut!(patience);
        let mut approved = by_us;
        let mut complained = false;
        loop {
            let state = tokio::select! {
                state = states.next() => state,
                () = &mut patience, if approved && !complained => {
                    complained = true;
                    tracing::warn!(
                        request = filed.name, signer = self.signer,
                        "approved, and not signed yet: see whether anything in the cluster signs for this signer (the \
                         kube-controller-manager does for kubernetes.io/*, if it has the CA's key)"
                    );
                    standing.trouble(format!("{filed} is approved, and {} hasn't signed it", self.signer));
                    continue;
                }
            };
            let request = match state {
                Some(Ok(Some(request))) => request,
                Some(Ok(None)) | None => return Err(TrustError::RequestGone(filed.name.clone())),
                Some(Err(error)) => {
                    tracing::warn!(request = filed.name, %error, "the certificate request can't be watched for now");
                    standing.trouble(format!("{filed} can't be watched: {error}"));
                    continue;
                }
            };
            if let Some(condition) = condition(&request, DENIED) {
                return Err(turned_down("denied", condition));
            }
            if let Some(condition) = condition(&request, FAILED) {
                return Err(turned_down("failed by the signer", condition));
            }
            if !approved && condition(&request, APPROVED).is_some() {
                approved = true;
                patience.as_mut().reset(time::Instant::now() + SIGNER_PATIENCE);
            }
            let certificate = request.status.and_then(|status| status.certificate);
            if let Some(ByteString(chain)) = certificate.filter(|certificate| !certificate.0.is_empty()) {
                return Ok(chain);
            }
        }
    }
}

/// A request that was made. Dropped, it is removed from the API server: it has served, or is no longer wanted.
struct Filed {
    api: Api<CertificateSigningRequest>,
    name: String,
    made: CertificateSigningRequest,
}

impl std::fmt::Display for Filed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "CertificateSigningRequest {}", self.name)
    }
}

impl Drop for Filed {
    fn drop(&mut self) {
        // One that can't be removed goes after an hour, or a day if nobody decided on it: the controller manager sees
        // to that.
        let Ok(runtime) = Handle::try_current() else { return };
        let (api, name) = (self.api.clone(), std::mem::take(&mut self.name));
        runtime.spawn(async move {
            let terms = DeleteParams::default();
            let question = async { unless(api.delete(&name, &terms).await, Status::is_not_found) };
            if let Err(error) = ask(|| format!("delete CertificateSigningRequest {name}"), question).await {
                tracing::warn!(%error, "a certificate request is left over; the cluster removes it within a day");
            }
        });
    }
}

/// A condition that is set.
fn condition<'a>(request: &'a CertificateSigningRequest, kind: &str) -> Option<&'a CertificateSigningRequestCondition> {
    let conditions = request.status.as_ref()?.conditions.as_ref()?;
    conditions
        .iter()
        .find(|condition| condition.type_ == kind && condition.status == "True")
}
