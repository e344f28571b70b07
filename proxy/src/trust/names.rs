//! What a serving certificate must name.

use std::{collections::BTreeSet, net::IpAddr};

use rcgen::SanType;

use super::TrustError;

/// What clients in a cluster call the API server, beside its addresses.
const CLUSTER_NAMES: [&str; 4] = [
    "kubernetes",
    "kubernetes.default",
    "kubernetes.default.svc",
    "kubernetes.default.svc.cluster.local",
];

/// What a serving certificate must name beside `kubernetes.default.svc` and its kin.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServedNames {
    /// Every address that a pod may dial: `ClusterIP`s and endpoints.
    pub addresses: BTreeSet<IpAddr>,
    /// Further DNS names: a cluster domain other than `cluster.local`, the name of an endpoint.
    pub dns_names: BTreeSet<String>,
}

impl ServedNames {
    /// All DNS names, those of every cluster among them.
    pub(super) fn all_dns_names(&self) -> BTreeSet<&str> {
        let further = self.dns_names.iter().map(String::as_str);
        CLUSTER_NAMES.into_iter().chain(further).collect()
    }

    /// All addresses, IPv4 as IPv4.
    pub(super) fn all_addresses(&self) -> BTreeSet<IpAddr> {
        self.addresses.iter().map(IpAddr::to_canonical).collect()
    }

    /// Whether a certificate for these names also does for `others`.
    pub(super) fn cover(&self, others: &Self) -> bool {
        self.all_dns_names().is_superset(&others.all_dns_names())
            && self.all_addresses().is_superset(&others.all_addresses())
    }

    /// As a certificate, or a request for one, has them.
    pub(super) fn subject_alt_names(&self) -> Result<Vec<SanType>, TrustError> {
        let mut names = Vec::new();
        for name in self.all_dns_names() {
            names.push(SanType::DnsName(name.try_into()?));
        }
        names.extend(self.all_addresses().into_iter().map(SanType::IpAddress));
        Ok(names)
    }
}
