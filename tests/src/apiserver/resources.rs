//! The table of resources that are served. Discovery, `OpenAPI`, storage and authorization all read it, so a
//! resource is added here and nowhere else.

use serde_json::{Value, json};

/// One resource of one API group.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Resource {
    pub(crate) group: &'static str,
    pub(crate) version: &'static str,
    pub(crate) plural: &'static str,
    pub(crate) singular: &'static str,
    pub(crate) kind: &'static str,
    pub(crate) namespaced: bool,
    pub(crate) short_names: &'static [&'static str],
    pub(crate) subresources: &'static [Subresource],
    /// False for reviews, which are answered and not kept.
    pub(crate) stored: bool,
}

/// A subresource, as discovery lists it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Subresource {
    pub(crate) name: &'static str,
    pub(crate) kind: &'static str,
    pub(crate) verbs: &'static [&'static str],
}

const STATUS: Subresource = Subresource {
    name: "status",
    kind: "",
    verbs: &["get", "patch", "update"],
};

const fn core(
    plural: &'static str,
    singular: &'static str,
    kind: &'static str,
    short_names: &'static [&'static str],
    namespaced: bool,
) -> Resource {
    Resource {
        group: "",
        version: "v1",
        plural,
        singular,
        kind,
        namespaced,
        short_names,
        subresources: &[],
        stored: true,
    }
}

const fn review(group: &'static str, plural: &'static str, singular: &'static str, kind: &'static str) -> Resource {
    Resource {
        group,
        version: "v1",
        plural,
        singular,
        kind,
        namespaced: false,
        short_names: &[],
        subresources: &[],
        stored: false,
    }
}

/// All of them, each group's together.
pub(crate) static RESOURCES: &[Resource] = &[
    core("configmaps", "configmap", "ConfigMap", &["cm"], true),
    core("endpoints", "endpoints", "Endpoints", &["ep"], true),
    core("events", "event", "Event", &["ev"], true),
    Resource {
        subresources: &[STATUS],
        ..core("namespaces", "namespace", "Namespace", &["ns"], false)
    },
    Resource {
        subresources: &[STATUS],
        ..core("nodes", "node", "Node", &["no"], false)
    },
    Resource {
        subresources: &[
            Subresource {
                name: "attach",
                kind: "PodAttachOptions",
                verbs: &["create", "get"],
            },
            Subresource {
                name: "exec",
                kind: "PodExecOptions",
                verbs: &["create", "get"],
            },
            Subresource {
                name: "log",
                kind: "Pod",
                verbs: &["get"],
            },
            Subresource {
                name: "portforward",
                kind: "PodPortForwardOptions",
                verbs: &["create", "get"],
            },
            STATUS,
        ],
        ..core("pods", "pod", "Pod", &["po"], true)
    },
    core("secrets", "secret", "Secret", &[], true),
    core("serviceaccounts", "serviceaccount", "ServiceAccount", &["sa"], true),
    core("services", "service", "Service", &["svc"], true),
    Resource {
        group: "apps",
        subresources: &[STATUS],
        ..core("deployments", "deployment", "Deployment", &["deploy"], true)
    },
    review(
        "authentication.k8s.io",
        "selfsubjectreviews",
        "selfsubjectreview",
        "SelfSubjectReview",
    ),
    review("authentication.k8s.io", "tokenreviews", "tokenreview", "TokenReview"),
    review(
        "authorization.k8s.io",
        "selfsubjectaccessreviews",
        "selfsubjectaccessreview",
        "SelfSubjectAccessReview",
    ),
    review(
        "authorization.k8s.io",
        "subjectaccessreviews",
        "subjectaccessreview",
        "SubjectAccessReview",
    ),
    Resource {
        group: "coordination.k8s.io",
        ..core("leases", "lease", "Lease", &[], true)
    },
    Resource {
        group: "understudy.dev",
        version: "v1alpha1",
        subresources: &[STATUS],
        ..core("sessions", "session", "Session", &[], true)
    },
];

impl Resource {
    /// The one of that name.
    pub(crate) fn find(group: &str, version: &str, plural: &str) -> Option<&'static Self> {
        RESOURCES
            .iter()
            .find(|resource| resource.group == group && resource.version == version && resource.plural == plural)
    }

    /// The one that this object is of.
    pub(crate) fn of_object(object: &Value) -> Option<&'static Self> {
        let api_version = object["apiVersion"].as_str()?;
        let kind = object["kind"].as_str()?;
        RESOURCES
            .iter()
            .find(|resource| resource.kind == kind && resource.api_version() == api_version)
    }

    /// `v1`, or `group/version`.
    pub(crate) fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.to_owned()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }

    /// What may be done to it.
    pub(crate) fn verbs(&self) -> &'static [&'static str] {
        if self.stored {
            &[
                "create",
                "delete",
                "deletecollection",
                "get",
                "list",
                "patch",
                "update",
                "watch",
            ]
        } else {
            &["create"]
        }
    }

    /// Group, version and kind as discovery and `OpenAPI` write them.
    pub(crate) fn group_version_kind(&self) -> Value {
        json!({"group": self.group, "version": self.version, "kind": self.kind})
    }
}

/// The groups with their version, in order; each has one.
pub(crate) fn groups() -> Vec<(&'static str, &'static str)> {
    let mut groups: Vec<_> = RESOURCES
        .iter()
        .map(|resource| (resource.group, resource.version))
        .collect();
    groups.dedup();
    groups
}

/// Those of one group.
pub(crate) fn of_group(group: &str, version: &str) -> impl Iterator<Item = &'static Resource> {
    RESOURCES
        .iter()
        .filter(move |resource| resource.group == group && resource.version == version)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_group_stands_together_and_has_one_version() {
        let groups = groups();
        let mut names: Vec<_> = groups.iter().map(|(group, _)| group).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), groups.len());
    }

    #[test]
    fn an_object_finds_its_resource() {
        let pod = json!({"apiVersion": "v1", "kind": "Pod"});
        assert_eq!(Resource::of_object(&pod).unwrap().plural, "pods");
        let session = json!({"apiVersion": "understudy.dev/v1alpha1", "kind": "Session"});
        assert_eq!(Resource::of_object(&session).unwrap().plural, "sessions");
        assert!(Resource::of_object(&json!({"apiVersion": "v2", "kind": "Pod"})).is_none());
    }
}
