//! The text of a policy, and what kube-apiserver would refuse in it.

use serde::Deserialize;

use super::{Extent, GroupResources, Policy, Rule};
use crate::{audit::event::Level, pod};

const API_VERSION: &str = "audit.k8s.io/v1";
const LEVELS: [Level; 4] = [Level::None, Level::Metadata, Level::Request, Level::RequestResponse];
const STAGES: [&str; 4] = ["RequestReceived", "ResponseStarted", "ResponseComplete", "Panic"];

/// Something in a policy that can't be meant, by the field.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// Not a policy of the version that is understood.
    #[error("it is of apiVersion {0:?} and kind {1:?}: write apiVersion: audit.k8s.io/v1 and kind: Policy")]
    Kind(String, String),
    /// Kubernetes refuses a policy without rules.
    #[error("rules is empty: write at least one, such as {{level: Metadata}}")]
    NoRules,
    /// No level.
    #[error("{0}.level is missing: use None, Metadata, Request or RequestResponse")]
    NoLevel(String),
    /// No such level.
    #[error("{0}.level {1:?} is none: use None, Metadata, Request or RequestResponse")]
    Level(String, String),
    /// No such stage.
    #[error("{0} {1:?} is no stage: use RequestReceived, ResponseStarted, ResponseComplete or Panic")]
    Stage(String, String),
    /// A path that none will ever equal.
    #[error("{0} {1:?} doesn't begin with '/': write the whole path, or \"*\" alone for all")]
    Path(String, String),
    /// A `*` that isn't the last.
    #[error("{0} {1:?} has a '*' before its end: put it last, or write a rule for each path")]
    Wildcard(String, String),
    /// Not a name of an API group.
    #[error("{0} {1:?} is no API group: write it without its version, \"\" for the core group, or \"*\" for all")]
    Group(String, String),
    /// Names of objects, and no resource that they are of.
    #[error("{0} has resourceNames without resources: name the resources that they are of")]
    NamesOfNothing(String),
    /// A rule for both kinds of requests matches none.
    #[error("{0}.nonResourceURLs goes neither with resources nor with namespaces: write a rule for each")]
    Both(String),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct PolicyManifest {
    #[serde(default)]
    api_version: String,
    #[serde(default)]
    kind: String,
    // Labels, annotations and the like are allowed and not looked at.
    #[serde(default, rename = "metadata")]
    _metadata: serde_json::Value,
    #[serde(default)]
    rules: Vec<RuleManifest>,
    #[serde(default)]
    omit_stages: Vec<String>,
    #[serde(default)]
    omit_managed_fields: bool,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct RuleManifest {
    level: String,
    users: Vec<String>,
    user_groups: Vec<String>,
    verbs: Vec<String>,
    resources: Vec<GroupManifest>,
    namespaces: Vec<String>,
    #[serde(rename = "nonResourceURLs")]
    non_resource_urls: Vec<String>,
    omit_stages: Vec<String>,
    omit_managed_fields: Option<bool>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct GroupManifest {
    group: String,
    resources: Vec<String>,
    resource_names: Vec<String>,
}

/// Reads a policy. The outer error is of its form, the inner one of its content.
pub(super) fn read(text: &str) -> Result<Result<Policy, Vec<Fault>>, String> {
    let options = serde_saphyr::options! { with_snippet: false };
    let manifest: PolicyManifest =
        serde_saphyr::from_str_with_options(text, options).map_err(|error| error.to_string())?;
    let mut faults = Vec::new();
    if manifest.api_version != API_VERSION || manifest.kind != "Policy" {
        faults.push(Fault::Kind(manifest.api_version.clone(), manifest.kind.clone()));
    }
    if manifest.rules.is_empty() {
        faults.push(Fault::NoRules);
    }
    check_stages(&manifest.omit_stages, "omitStages", &mut faults);
    let otherwise = extent(Level::None, &manifest.omit_stages, &[], manifest.omit_managed_fields);
    let rules = manifest.rules.into_iter().enumerate();
    let rules = rules
        .map(|(index, rule)| {
            let field = format!("rules[{index}]");
            let level = level(&rule.level, &field, &mut faults);
            check(&rule, &field, &mut faults);
            let managed = rule.omit_managed_fields.unwrap_or(manifest.omit_managed_fields);
            Rule {
                extent: extent(level, &manifest.omit_stages, &rule.omit_stages, managed),
                users: rule.users,
                user_groups: rule.user_groups,
                verbs: rule.verbs,
                resources: rule.resources.into_iter().map(GroupResources::from).collect(),
                namespaces: rule.namespaces,
                non_resource_urls: rule.non_resource_urls,
            }
        })
        .collect();
    Ok(if faults.is_empty() {
        Ok(Policy { rules, otherwise })
    } else {
        Err(faults)
    })
}

impl From<GroupManifest> for GroupResources {
    fn from(manifest: GroupManifest) -> Self {
        Self {
            group: manifest.group,
            resources: manifest.resources,
            resource_names: manifest.resource_names,
        }
    }
}

/// The stages that either leaves out are.
fn extent(level: Level, of_policy: &[String], of_rule: &[String], omit_managed_fields: bool) -> Extent {
    let omits = |stage: &str| of_policy.iter().chain(of_rule).any(|omitted| omitted == stage);
    Extent {
        level,
        omit_started: omits("ResponseStarted"),
        omit_complete: omits("ResponseComplete"),
        omit_managed_fields,
    }
}

fn level(text: &str, field: &str, faults: &mut Vec<Fault>) -> Level {
    let level = LEVELS.into_iter().find(|level| level.name() == text);
    level.unwrap_or_else(|| {
        faults.push(if text.is_empty() {
            Fault::NoLevel(field.to_owned())
        } else {
            Fault::Level(field.to_owned(), text.to_owned())
        });
        Level::None
    })
}

fn check(rule: &RuleManifest, field: &str, faults: &mut Vec<Fault>) {
    for (index, url) in rule.non_resource_urls.iter().enumerate() {
        let place = format!("{field}.nonResourceURLs[{index}]");
        if url == "*" {
            continue;
        }
        if !url.starts_with('/') {
            faults.push(Fault::Path(place.clone(), url.clone()));
        }
        if url.strip_suffix('*').unwrap_or(url).contains('*') {
            faults.push(Fault::Wildcard(place, url.clone()));
        }
    }
    for (index, group) in rule.resources.iter().enumerate() {
        let place = format!("{field}.resources[{index}]");
        if !group.group.is_empty() && group.group != "*" && !pod::is_dns1123_subdomain(&group.group) {
            faults.push(Fault::Group(format!("{place}.group"), group.group.clone()));
        }
        if !group.resource_names.is_empty() && group.resources.is_empty() {
            faults.push(Fault::NamesOfNothing(place));
        }
    }
    check_stages(&rule.omit_stages, &format!("{field}.omitStages"), faults);
    let is_of_resources = !rule.resources.is_empty() || !rule.namespaces.is_empty();
    if is_of_resources && !rule.non_resource_urls.is_empty() {
        faults.push(Fault::Both(field.to_owned()));
    }
}

fn check_stages(stages: &[String], field: &str, faults: &mut Vec<Fault>) {
    for (index, stage) in stages.iter().enumerate() {
        if !STAGES.contains(&stage.as_str()) {
            faults.push(Fault::Stage(format!("{field}[{index}]"), stage.clone()));
        }
    }
}
