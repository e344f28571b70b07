//! The API server's addresses: those of its Service, and the endpoints behind it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
use kube::api::{ApiResource, DynamicObject};
use serde_json::Value;
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep_until},
};

use super::watch::{Query, Seen, follow};
use crate::metrics::{Metrics, Watched};

/// An address that is the API server's no longer is intercepted for so long: a pod may have looked it up before, and a
/// server that was away for an upgrade serves again before its endpoint is written down again (invariant 1).
pub const LINGER: Duration = Duration::from_hours(1);

/// What the kernel's set is made from.
pub type Addresses = Arc<BTreeSet<SocketAddr>>;

/// Follows `default/kubernetes`: its Service and its `EndpointSlices`, and joins what they say with `fixed`. What comes
/// is published at once, what goes [`LINGER`] later. Before both have been listed once, there is nothing: `None`.
#[must_use]
pub fn follow_addresses(
    client: kube::Client,
    fixed: BTreeSet<SocketAddr>,
    metrics: &Metrics,
) -> watch::Receiver<Option<Addresses>> {
    let changed = Arc::new(Notify::new());
    let query = |what, resource, labels: Option<&str>, fields: Option<&str>| Query {
        what,
        resource,
        namespace: Some("default".to_owned()),
        labels: labels.map(str::to_owned),
        fields: fields.map(str::to_owned),
    };
    let service = follow(
        client.clone(),
        query(
            Watched::Service,
            ApiResource::erase::<Service>(&()),
            None,
            Some("metadata.name=kubernetes"),
        ),
        metrics,
        Arc::clone(&changed),
        |object| of_service(&object),
    );
    let slices = follow(
        client,
        query(
            Watched::EndpointSlices,
            ApiResource::erase::<EndpointSlice>(&()),
            Some("kubernetes.io/service-name=kubernetes"),
            None,
        ),
        metrics,
        Arc::clone(&changed),
        |object| of_slice(&object),
    );
    let (publish, addresses) = watch::channel(None);
    tokio::spawn(async move {
        let mut lingering = Lingering::default();
        loop {
            let now = Instant::now();
            if let Some(seen) = both(&service.borrow(), &slices.borrow()) {
                let all: Addresses = Arc::new(lingering.update(fixed.union(&seen).copied().collect(), now));
                publish.send_if_modified(|published| {
                    let modified = published.as_ref() != Some(&all);
                    if modified {
                        tracing::info!(addresses = ?all, "the API server's addresses");
                        *published = Some(all);
                    }
                    modified
                });
            }
            let next = lingering.next();
            tokio::select! {
                () = publish.closed() => return,
                () = changed.notified() => {}
                () = sleep_until(next.unwrap_or(now)), if next.is_some() => {}
            }
        }
    });
    addresses
}

fn both(service: &Seen<BTreeSet<SocketAddr>>, slices: &Seen<BTreeSet<SocketAddr>>) -> Option<BTreeSet<SocketAddr>> {
    let (service, slices) = (service.objects.as_ref()?, slices.objects.as_ref()?);
    Some(service.values().chain(slices.values()).flatten().copied().collect())
}

/// Addresses that were there, and until when they count.
#[derive(Debug, Default)]
struct Lingering {
    present: BTreeSet<SocketAddr>,
    going: BTreeMap<SocketAddr, Instant>,
}

impl Lingering {
    fn update(&mut self, present: BTreeSet<SocketAddr>, now: Instant) -> BTreeSet<SocketAddr> {
        for gone in self.present.difference(&present) {
            self.going.insert(*gone, now + LINGER);
        }
        self.going
            .retain(|address, until| *until > now && !present.contains(address));
        self.present = present;
        self.present.iter().chain(self.going.keys()).copied().collect()
    }

    fn next(&self) -> Option<Instant> {
        self.going.values().min().copied()
    }
}

/// Every address of the Service with every TCP port, whatever they are called: all of them lead to the API server.
fn of_service(object: &DynamicObject) -> BTreeSet<SocketAddr> {
    let (spec, status) = (&object.data["spec"], &object.data["status"]);
    let texts = |list: &'_ Value| -> Vec<String> {
        list.as_array()
            .into_iter()
            .flatten()
            .filter_map(|text| text.as_str().map(str::to_owned))
            .collect()
    };
    let mut addresses = texts(&spec["clusterIPs"]);
    addresses.extend(spec["clusterIP"].as_str().map(str::to_owned));
    addresses.extend(texts(&spec["externalIPs"]));
    let balanced = status["loadBalancer"]["ingress"].as_array().into_iter().flatten();
    addresses.extend(balanced.filter_map(|ingress| ingress["ip"].as_str().map(str::to_owned)));
    product(addresses.iter().map(String::as_str), &spec["ports"])
}

/// Every endpoint, ready or not, with every TCP port.
fn of_slice(object: &DynamicObject) -> BTreeSet<SocketAddr> {
    let addresses = object.data["endpoints"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|endpoint| endpoint["addresses"].as_array())
        .flatten()
        .filter_map(Value::as_str);
    product(addresses, &object.data["ports"])
}

/// What isn't an address, such as a headless Service's `None` or a name, isn't one to intercept.
fn product<'a>(addresses: impl Iterator<Item = &'a str>, ports: &Value) -> BTreeSet<SocketAddr> {
    let ports: Vec<u16> = ports
        .as_array()
        .into_iter()
        .flatten()
        .filter(|port| port["protocol"].as_str().is_none_or(|protocol| protocol == "TCP"))
        .filter_map(|port| port["port"].as_u64()?.try_into().ok())
        .collect();
    addresses
        .filter_map(|address| address.parse::<IpAddr>().ok())
        .flat_map(|ip| ports.iter().map(move |port| SocketAddr::new(ip, *port)))
        .collect()
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::json;

    use super::*;

    fn object(rest: &Value) -> DynamicObject {
        let mut object = json!({"metadata": {"name": "kubernetes", "namespace": "default"}});
        object
            .as_object_mut()
            .unwrap()
            .extend(rest.as_object().unwrap().clone());
        serde_json::from_value(object).unwrap()
    }

    fn set(addresses: &[&str]) -> BTreeSet<SocketAddr> {
        addresses.iter().map(|address| address.parse().unwrap()).collect()
    }

    #[rstest]
    #[case::both_families(json!({"spec": {"clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1", "fd00::1"],
        "ports": [{"name": "https", "port": 443, "targetPort": 6443, "protocol": "TCP"}]}}),
        &["10.96.0.1:443", "[fd00::1]:443"])]
    #[case::old(json!({"spec": {"clusterIP": "10.96.0.1", "ports": [{"port": 443}]}}), &["10.96.0.1:443"])]
    #[case::outside(json!({"spec": {"clusterIPs": ["10.96.0.1"], "externalIPs": ["192.0.2.1"], "ports": [{"port": 443}]},
        "status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.2"}, {"hostname": "lb.example"}]}}}),
        &["10.96.0.1:443", "192.0.2.1:443", "192.0.2.2:443"])]
    #[case::headless(json!({"spec": {"clusterIP": "None", "clusterIPs": ["None"], "ports": [{"port": 443}]}}), &[])]
    #[case::another_protocol(json!({"spec": {"clusterIPs": ["10.96.0.1"], "ports": [{"port": 53, "protocol": "UDP"}]}}), &[])]
    #[case::nothing(json!({}), &[])]
    fn services(#[case] rest: Value, #[case] expected: &[&str]) {
        assert_eq!(of_service(&object(&rest)), set(expected));
    }

    #[rstest]
    #[case::also_what_is_not_ready(json!({"endpoints": [{"addresses": ["192.0.2.1"], "conditions": {"ready": true}},
        {"addresses": ["192.0.2.2"], "conditions": {"ready": false}}], "ports": [{"port": 6443}, {"port": 6444}]}),
        &["192.0.2.1:6443", "192.0.2.1:6444", "192.0.2.2:6443", "192.0.2.2:6444"])]
    #[case::six(json!({"endpoints": [{"addresses": ["fd00::7"]}], "ports": [{"port": 6443}]}), &["[fd00::7]:6443"])]
    #[case::empty(json!({"endpoints": null, "ports": null}), &[])]
    fn slices(#[case] rest: Value, #[case] expected: &[&str]) {
        assert_eq!(of_slice(&object(&rest)), set(expected));
    }

    #[tokio::test(start_paused = true)]
    async fn what_goes_lingers_and_what_comes_back_stays() {
        let (one, two) = (set(&["10.0.0.1:443"]), set(&["10.0.0.2:443"]));
        let both: BTreeSet<_> = one.union(&two).copied().collect();
        let mut lingering = Lingering::default();
        let start = Instant::now();
        assert_eq!(lingering.update(one.clone(), start), one);
        assert_eq!(lingering.update(two.clone(), start), both);
        assert_eq!(lingering.next(), Some(start + LINGER));
        let later = start + LINGER / 2;
        assert_eq!(lingering.update(one.clone(), later), both);
        // The first is back to stay, the second goes from now on.
        assert_eq!(lingering.update(one.clone(), start + LINGER), both);
        assert_eq!(lingering.update(one.clone(), later + LINGER), one);
        assert_eq!(lingering.next(), None);
    }
}
