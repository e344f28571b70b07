//! What the agent may do: what `deploy` grants to it, read from there, so that a right that is missing there is missed
//! in the box. Names are the only difference: the agent's account is the scene's own.

use std::fs;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::{ApiServer, Kind, ServerOptions, files};
use crate::node::{AGENT_NAMESPACE, Trust};

/// In every way of trust.
const BASE: &str = include_str!("../../../../deploy/base/rbac.yaml");
const CLUSTER_SIGNED: &str = include_str!("../../../../deploy/overlays/cluster-signed/rbac.yaml");
/// For sessions whose callers prove who they are.
const CALLER: &str = include_str!("../../../../deploy/components/caller-identity/rbac.yaml");
const OWN_CA: &str = include_str!("../../../../deploy/overlays/own-ca/rbac.yaml");
/// Whom the agent may become: the scene's viewer, with the groups that Kubernetes gives it.
const IMPERSONATE: &str = include_str!("../../../../deploy/examples/support/impersonate.yaml");

/// Who it is in those files.
const INSTALLED: (&str, &str) = ("understudy-system", "understudy");
/// Who it is in the scene.
const AGENT: (&str, &str) = (AGENT_NAMESPACE, "agent");

/// Roles and their bindings, as RBAC objects.
pub(super) fn of_agent(options: &ServerOptions) -> Result<Vec<Value>> {
    let files: &[&str] = match options.rights {
        Some(Trust::Files) => &[BASE, IMPERSONATE],
        Some(Trust::ClusterSigned) => &[BASE, IMPERSONATE, CLUSTER_SIGNED],
        Some(Trust::OwnCa) => &[BASE, IMPERSONATE, OWN_CA],
        None => &[BASE, IMPERSONATE, CALLER, CLUSTER_SIGNED, OWN_CA],
    };
    let mut objects = Vec::new();
    for file in files {
        let documents: Vec<Value> = serde_saphyr::from_multiple(file).context("reading the rights in deploy")?;
        objects.extend(documents);
    }
    if options.rights.is_none() {
        // For sessions that bring a token of their own: an operator grants each Secret by its name, tests choose theirs.
        let rule = json!({"apiGroups": [""], "resources": ["secrets"], "verbs": ["get", "list", "watch"]});
        objects.extend(role_everywhere("understudy-any-token", &rule));
    }
    for object in &mut objects {
        if options.no_approval {
            withhold_approval(object);
        }
        rename(object);
    }
    Ok(objects)
}

/// A cluster role, bound to the agent's account.
fn role_everywhere(name: &str, rule: &Value) -> [Value; 2] {
    let rbac = "rbac.authorization.k8s.io";
    let version = format!("{rbac}/v1");
    [
        json!({"apiVersion": version, "kind": "ClusterRole", "metadata": {"name": name}, "rules": [rule]}),
        json!({
            "apiVersion": version, "kind": "ClusterRoleBinding", "metadata": {"name": name},
            "roleRef": {"apiGroup": rbac, "kind": "ClusterRole", "name": name},
            "subjects": [{"kind": "ServiceAccount", "namespace": INSTALLED.0, "name": INSTALLED.1}],
        }),
    ]
}

impl ApiServer {
    /// Grants a user, by name, these rules of a cluster role, beside what they may do already. They are in force a
    /// moment later.
    ///
    /// # Errors
    /// The server refuses.
    pub async fn grant(&self, user: &str, rules: &Value) -> Result<()> {
        let rbac = "rbac.authorization.k8s.io";
        let version = format!("{rbac}/v1");
        let name = format!("understudy-granted-to-{user}");
        let objects = [
            json!({"apiVersion": version, "kind": "ClusterRole", "metadata": {"name": name}, "rules": rules}),
            json!({
                "apiVersion": version, "kind": "ClusterRoleBinding", "metadata": {"name": name},
                "roleRef": {"apiGroup": rbac, "kind": "ClusterRole", "name": name},
                "subjects": [{"apiGroup": rbac, "kind": "User", "name": user}],
            }),
        ];
        self.put_in_force(&objects).await
    }

    /// Grants what a manifest of `deploy` says, in the scene's names. It is in force a moment later.
    ///
    /// # Errors
    /// It isn't YAML, or the server refuses.
    pub async fn grant_roles(&self, manifest: &str) -> Result<()> {
        let mut objects: Vec<Value> = serde_saphyr::from_multiple(manifest).context("reading the rights in deploy")?;
        objects.iter_mut().for_each(rename);
        self.put_in_force(&objects).await
    }

    /// Has the test program go by the roles and bindings that it keeps as objects, beside what its rules said to begin with.
    /// It is so a moment later. A binding to a role that isn't there grants nothing.
    ///
    /// # Errors
    /// It is a real server, which needs no telling; or the rules can't be written.
    pub fn enforce(&self, objects: &[Value], beside: &Value) -> Result<()> {
        self.control()?;
        let is_there = |binding: &Value| {
            let role = &binding["roleRef"];
            objects
                .iter()
                .any(|object| object["kind"] == role["kind"] && object["metadata"]["name"] == role["name"])
        };
        let of_use = objects
            .iter()
            .filter(|object| object["subjects"].is_null() || is_there(object));
        let mut all = beside.clone();
        let rules = all["rules"].as_array_mut().context("the rules are a list")?;
        rules.extend(as_rules(&of_use.cloned().collect::<Vec<_>>())?);
        let path = files(&self.node).join("rules.yaml");
        let text = all.to_string();
        if fs::read_to_string(&path)? != text {
            fs::write(&path, text)?;
        }
        Ok(())
    }

    /// The rules that the test program goes by.
    ///
    /// # Errors
    /// They can't be read.
    pub fn rules(&self) -> Result<Value> {
        Ok(serde_json::from_slice(&fs::read(
            files(&self.node).join("rules.yaml"),
        )?)?)
    }

    /// Takes back what [`ApiServer::grant_roles`] granted by the same manifest. It is so a moment later.
    ///
    /// # Errors
    /// It isn't YAML, or the server refuses.
    pub async fn withdraw_roles(&self, manifest: &str) -> Result<()> {
        let mut objects: Vec<Value> = serde_saphyr::from_multiple(manifest).context("reading the rights in deploy")?;
        objects.iter_mut().for_each(rename);
        match &self.kind {
            Kind::Real(_) => {
                for binding in objects.iter().filter(|object| object["subjects"].is_array()) {
                    let text = |value: &Value| value.as_str().unwrap_or_default().to_lowercase();
                    let resource = format!("{}s.rbac.authorization.k8s.io", text(&binding["kind"]));
                    let metadata = &binding["metadata"];
                    self.delete(&resource, &text(&metadata["namespace"]), &text(&metadata["name"]))
                        .await?;
                }
            }
            Kind::Test(_) => {
                let path = files(&self.node).join("rules.yaml");
                let mut file: Value = serde_json::from_slice(&fs::read(&path)?)?;
                let withdrawn = as_rules(&objects)?;
                let all = file["rules"].as_array_mut().context("the rules are a list")?;
                all.retain(|rule| !withdrawn.contains(rule));
                fs::write(&path, file.to_string())?;
            }
        }
        Ok(())
    }

    async fn put_in_force(&self, objects: &[Value]) -> Result<()> {
        match &self.kind {
            Kind::Real(_) => {
                for object in objects {
                    self.apply(object).await?;
                }
            }
            Kind::Test(_) => {
                let path = files(&self.node).join("rules.yaml");
                let mut file: Value = serde_json::from_slice(&fs::read(&path)?)?;
                let all = file["rules"].as_array_mut().context("the rules are a list")?;
                all.extend(as_rules(objects)?);
                fs::write(&path, file.to_string())?;
            }
        }
        Ok(())
    }
}

/// Takes out what an operator may keep for themselves.
fn withhold_approval(object: &mut Value) {
    if let Some(rules) = object.get_mut("rules").and_then(Value::as_array_mut) {
        rules.retain(|rule| !texts(&rule["verbs"]).contains(&"approve"));
    }
}

fn rename(object: &mut Value) {
    if object["metadata"]["namespace"] == INSTALLED.0 {
        object["metadata"]["namespace"] = json!(AGENT.0);
    }
    let subjects = object.get_mut("subjects").and_then(Value::as_array_mut);
    for subject in subjects.into_iter().flatten() {
        if subject["namespace"] == INSTALLED.0 {
            subject["namespace"] = json!(AGENT.0);
            if subject["name"] == INSTALLED.1 {
                subject["name"] = json!(AGENT.1);
            }
        }
    }
}

/// The same, in the terms of the test program's rules: each binding's rules, for its subjects, in its namespace.
pub(super) fn as_rules(objects: &[Value]) -> Result<Vec<Value>> {
    let mut rules = Vec::new();
    for binding in objects.iter().filter(|object| object["subjects"].is_array()) {
        let (role, namespace) = (&binding["roleRef"], &binding["metadata"]["namespace"]);
        let role = objects.iter().find(|object| {
            object["kind"] == role["kind"]
                && object["metadata"]["name"] == role["name"]
                && (role["kind"] == "ClusterRole" || object["metadata"]["namespace"] == *namespace)
        });
        let role = role.with_context(|| format!("a role that isn't there: {binding}"))?;
        let (mut users, mut accounts) = (Vec::new(), Vec::new());
        for subject in binding["subjects"].as_array().into_iter().flatten() {
            let of = |field: &str| subject[field].as_str().unwrap_or_default();
            match of("kind") {
                "User" => users.push(of("name").to_owned()),
                // The test program's rules know no groups.
                "Group" => {}
                _ => accounts.push(format!("{}/{}", of("namespace"), of("name"))),
            }
        }
        for rule in role["rules"].as_array().into_iter().flatten() {
            rules.push(json!({
                "users": users,
                "serviceAccounts": accounts,
                "namespaces": namespace.as_str().into_iter().collect::<Vec<_>>(),
                "apiGroups": texts(&rule["apiGroups"]),
                "resources": texts(&rule["resources"]),
                "resourceNames": texts(&rule["resourceNames"]),
                "verbs": texts(&rule["verbs"]),
            }));
        }
    }
    Ok(rules)
}

fn texts(list: &Value) -> Vec<&str> {
    list.as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(options: &ServerOptions) -> Vec<Value> {
        as_rules(&of_agent(options).unwrap()).unwrap()
    }

    fn grants(rules: &[Value], resource: &str, verb: &str) -> bool {
        rules
            .iter()
            .any(|rule| texts(&rule["resources"]).contains(&resource) && texts(&rule["verbs"]).contains(&verb))
    }

    #[test]
    fn every_right_is_the_scenes_agents() {
        let rules = rules(&ServerOptions::default());
        assert!(!rules.is_empty());
        for rule in &rules {
            assert_eq!(rule["serviceAccounts"], json!(["understudy/agent"]), "{rule}");
            assert_ne!(rule["namespaces"], json!(["understudy-system"]), "{rule}");
        }
    }

    #[test]
    fn each_way_of_trust_has_its_own_rights() {
        let base = rules(&ServerOptions::default().rights_of(Trust::Files));
        assert!(grants(&base, "pods", "watch"));
        assert!(grants(&base, "serviceaccounts", "impersonate"));
        assert!(!grants(&base, "secrets", "get"));
        assert!(!grants(&base, "signers", "approve"));
        let signed = rules(&ServerOptions::default().rights_of(Trust::ClusterSigned));
        assert!(grants(&signed, "signers", "approve"));
        assert!(!grants(&signed, "configmaps", "patch"));
        let own = rules(&ServerOptions::default().rights_of(Trust::OwnCa));
        assert!(grants(&own, "configmaps", "patch"));
        assert!(!grants(&own, "signers", "approve"));
    }

    #[test]
    fn approval_can_be_withheld() {
        let options = ServerOptions::default().rights_of(Trust::ClusterSigned);
        let rules = rules(&options.without_approval());
        assert!(grants(&rules, "certificatesigningrequests", "create"));
        assert!(!grants(&rules, "signers", "approve"));
    }
}
