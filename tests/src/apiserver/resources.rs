//! The table of resources that are served. Discovery, `OpenAPI`, storage and authorization all read it, so a
//! resource is added here and nowhere else.

use serde_json::{Value, json};

/// One resource of one API group.
#[derive(Debug)]
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
    /// What a custom resource's definition says.
    pub(crate) custom: Option<&'static Custom>,
}

/// What a `CustomResourceDefinition` says beside the names.
#[derive(Debug)]
pub(crate) struct Custom {
    /// The structural schema, as `openAPIV3Schema` has it.
    pub(crate) schema: Value,
    /// `additionalPrinterColumns`.
    pub(crate) columns: Value,
    /// The JSON paths of `selectableFields`, without their leading dot.
    pub(crate) selectable: Vec<String>,
}

/// A resource is one, however often its definition has changed.
impl PartialEq for Resource {
    fn eq(&self, other: &Self) -> bool {
        (self.group, self.version, self.plural) == (other.group, other.version, other.plural)
    }
}

impl Eq for Resource {}

/// A subresource, as discovery lists it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Subresource {
    pub(crate) name: &'static str,
    pub(crate) kind: &'static str,
    pub(crate) verbs: &'static [&'static str],
}

pub(crate) const STATUS: Subresource = Subresource {
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
        custom: None,
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
        custom: None,
    }
}

/// Kept, and acted on by nobody: admission is changed by none of them here.
const fn admission(plural: &'static str, singular: &'static str, kind: &'static str) -> Resource {
    Resource {
        group: "admissionregistration.k8s.io",
        ..core(plural, singular, kind, &[], false)
    }
}

/// Kept, and acted on by nobody: who may do what is in the rules file.
const fn rbac(plural: &'static str, singular: &'static str, kind: &'static str, namespaced: bool) -> Resource {
    Resource {
        group: "rbac.authorization.k8s.io",
        ..core(plural, singular, kind, &[], namespaced)
    }
}

/// All but custom ones, each group's together.
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
    Resource {
        subresources: &[Subresource {
            name: "token",
            kind: "TokenRequest",
            verbs: &["create"],
        }],
        ..core("serviceaccounts", "serviceaccount", "ServiceAccount", &["sa"], true)
    },
    core("services", "service", "Service", &["svc"], true),
    admission(
        "mutatingadmissionpolicies",
        "mutatingadmissionpolicy",
        "MutatingAdmissionPolicy",
    ),
    admission(
        "mutatingadmissionpolicybindings",
        "mutatingadmissionpolicybinding",
        "MutatingAdmissionPolicyBinding",
    ),
    Resource {
        group: "apiextensions.k8s.io",
        subresources: &[STATUS],
        ..core(
            "customresourcedefinitions",
            "customresourcedefinition",
            "CustomResourceDefinition",
            &["crd", "crds"],
            false,
        )
    },
    Resource {
        group: "apps",
        subresources: &[STATUS],
        ..core("daemonsets", "daemonset", "DaemonSet", &["ds"], true)
    },
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
        group: "certificates.k8s.io",
        subresources: &[
            Subresource {
                name: "approval",
                kind: "",
                verbs: &["get", "patch", "update"],
            },
            STATUS,
        ],
        ..core(
            "certificatesigningrequests",
            "certificatesigningrequest",
            "CertificateSigningRequest",
            &["csr"],
            false,
        )
    },
    Resource {
        group: "coordination.k8s.io",
        ..core("leases", "lease", "Lease", &[], true)
    },
    Resource {
        group: "discovery.k8s.io",
        ..core("endpointslices", "endpointslice", "EndpointSlice", &[], true)
    },
    Resource {
        group: "events.k8s.io",
        ..core("events", "event", "Event", &["ev"], true)
    },
    rbac("clusterroles", "clusterrole", "ClusterRole", false),
    rbac("clusterrolebindings", "clusterrolebinding", "ClusterRoleBinding", false),
    rbac("roles", "role", "Role", true),
    rbac("rolebindings", "rolebinding", "RoleBinding", true),
];

impl Resource {
    /// The one of that name.
    pub(crate) fn find(group: &str, version: &str, plural: &str) -> Option<&'static Self> {
        RESOURCES
            .iter()
            .find(|resource| resource.group == group && resource.version == version && resource.plural == plural)
    }

    /// `v1`, or `group/version`.
    pub(crate) fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.to_owned()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }

    /// Whether it has that subresource.
    pub(crate) fn has(&self, subresource: &str) -> bool {
        self.subresources.iter().any(|own| own.name == subresource)
    }

    /// Whether `metadata.generation` counts the changes of its spec.
    pub(crate) fn has_generation(&self) -> bool {
        self.custom.is_some()
            || matches!(
                self.plural,
                "pods" | "daemonsets" | "deployments" | "customresourcedefinitions"
            )
    }

    /// Whether an update may leave out the version that it is made of.
    pub(crate) fn updates_without_version(&self) -> bool {
        self.custom.is_none() && !matches!(self.plural, "leases" | "customresourcedefinitions")
    }

    /// The resource whose objects it shows, in a form of its own; mostly itself.
    pub(crate) fn stored(&'static self) -> &'static Self {
        match (self.group, self.plural) {
            ("events.k8s.io", "events") => Self::find("", "v1", "events").unwrap_or(self),
            _ => self,
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

/// The resources that a server has: those of every server, and what its custom resource definitions add.
#[derive(Debug, Clone, Default)]
pub(crate) struct Catalogue(pub(crate) Vec<&'static Resource>);

impl Catalogue {
    fn all(&self) -> impl Iterator<Item = &'static Resource> + '_ {
        RESOURCES.iter().chain(self.0.iter().copied())
    }

    /// The one of that name.
    pub(crate) fn find(&self, group: &str, version: &str, plural: &str) -> Option<&'static Resource> {
        self.all()
            .find(|resource| resource.group == group && resource.version == version && resource.plural == plural)
    }

    /// The one that this object is of.
    pub(crate) fn of_object(&self, object: &Value) -> Option<&'static Resource> {
        let api_version = object["apiVersion"].as_str()?;
        let kind = object["kind"].as_str()?;
        self.all()
            .find(|resource| resource.kind == kind && resource.api_version() == api_version)
    }

    /// The groups with their version, in order; each has one.
    pub(crate) fn groups(&self) -> Vec<(&'static str, &'static str)> {
        let mut groups: Vec<_> = self.all().map(|resource| (resource.group, resource.version)).collect();
        groups.dedup();
        groups
    }

    /// Those of one group.
    pub(crate) fn of_group(&self, group: &str, version: &str) -> Vec<&'static Resource> {
        self.all()
            .filter(|resource| resource.group == group && resource.version == version)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_group_stands_together_and_has_one_version() {
        let groups = Catalogue::default().groups();
        let mut names: Vec<_> = groups.iter().map(|(group, _)| group).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), groups.len());
    }

    #[test]
    fn an_object_finds_its_resource() {
        let pod = json!({"apiVersion": "v1", "kind": "Pod"});
        assert_eq!(Catalogue::default().of_object(&pod).unwrap().plural, "pods");
        assert!(
            Catalogue::default()
                .of_object(&json!({"apiVersion": "v2", "kind": "Pod"}))
                .is_none()
        );
    }
}
