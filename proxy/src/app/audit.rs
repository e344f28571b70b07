//! The audit log, as the agent's options say it.

use std::sync::Arc;

use crate::{
    admin::Readiness,
    audit::{
        Audit, BodyTerms, Destination, Policy, Sinks, Terms,
        mask::Masks,
        webhook::{Endpoint, Webhook},
    },
    cli::{AgentOptions, AuditOptions},
    clock::Clock,
    metrics::Metrics,
};

const MIB: u64 = 1024 * 1024;

/// Starts it as the options say.
///
/// # Errors
/// If the policy or the webhook's file can't be used, or a sink can't be opened.
pub(super) async fn audit_log(
    options: &AgentOptions,
    readiness: &Readiness,
    clock: &Clock,
    metrics: &Metrics,
) -> anyhow::Result<Audit> {
    let AuditOptions {
        audit_log,
        audit_policy,
        audit_webhook_config,
        ..
    } = &options.audit;
    let policy = match audit_policy {
        Some(path) => Policy::load(path).await?,
        None => Policy::default(),
    };
    let log = (audit_log.as_os_str() != "none").then(|| Destination::new(audit_log.clone(), options.audit.rotation()));
    let webhook = match audit_webhook_config {
        Some(path) => Some(Webhook {
            endpoint: Endpoint::load(path).await?,
            queue: options.audit.audit_webhook_queue.clone(),
            queue_size: options.audit.audit_webhook_queue_size.saturating_mul(MIB),
        }),
        None => None,
    };
    anyhow::ensure!(
        log.is_some() || webhook.is_some(),
        "--audit-log none leaves the audit log nowhere to go: give --audit-webhook-config as well"
    );
    let terms = Terms {
        failure: options.audit.audit_failure,
        patience: options.limits.queue_timeout,
        node: options.node_name.as_str().into(),
        policy,
        bodies: BodyTerms {
            limit: options.audit.audit_max_body,
            masks: Arc::new(Masks::new(options.audit.audit_masks.clone())),
        },
        clock: clock.clone(),
    };
    let sinks = Sinks {
        log: log.map(|destination| (destination, readiness.condition("audit"))),
        webhook: webhook.map(|webhook| (webhook, readiness.condition("audit-webhook"))),
    };
    Ok(Audit::start(sinks, terms, metrics).await?)
}
