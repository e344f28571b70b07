//! Which certificates are good, when, and whom they name.

use proptest::prelude::*;
use rcgen::date_time_ymd;
use rstest::rstest;

use super::*;

fn user(certificate: &Certificate, ca: &Ca, time: &str) -> Result<Option<Arc<UserInfo>>, CertificateError> {
    certificate.user(&source(Some(ca.authorities())).1.in_force(), at(time))
}

#[test]
fn the_subject_is_read_as_kube_apiserver_reads_it() {
    let ca = Ca::new();
    let certificate = ca.client(|params| {
        let name = &mut params.distinguished_name;
        name.push(DnType::OrganizationName, "devs");
        name.push(DnType::CommonName, "jane@example.org");
        name.push(DnType::CustomDnType(vec![1, 3, 6, 1, 4, 1, 57683, 2]), "u-1");
    });
    let user = user(&certificate, &ca, NOW).unwrap().unwrap();
    assert_eq!(user.username.as_deref(), Some("jane@example.org"));
    assert_eq!(user.groups.as_deref().unwrap(), ["devs", "system:authenticated"]);
    assert_eq!(user.uid.as_deref(), Some("u-1"));
    let extra = user.extra.as_ref().unwrap();
    let [id] = extra["authentication.kubernetes.io/credential-id"].as_slice() else {
        panic!("{extra:?}")
    };
    let digest = id.strip_prefix("X509SHA256=").unwrap();
    assert!(
        extra.len() == 1 && digest.len() == 64 && digest.bytes().all(|byte| byte.is_ascii_hexdigit()),
        "{id}"
    );
}

#[rstest]
#[case::none(vec![], true)]
#[case::client(vec![ExtendedKeyUsagePurpose::ClientAuth], true)]
#[case::both(vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth], true)]
#[case::server(vec![ExtendedKeyUsagePurpose::ServerAuth], false)]
fn a_certificate_for_something_else_proves_nothing(#[case] usages: Vec<ExtendedKeyUsagePurpose>, #[case] good: bool) {
    let ca = Ca::new();
    let certificate = ca.client(|params| {
        named("jane")(params);
        params.extended_key_usages = usages;
    });
    assert_eq!(user(&certificate, &ca, NOW).is_ok(), good);
}

/// What was found for a request is no answer for a later one: the same certificate, before, in and after its time.
#[test]
fn a_certificate_is_good_in_its_time_alone() {
    let ca = Ca::new();
    let certificate = ca.client(|params| {
        named("jane")(params);
        params.not_before = date_time_ymd(2026, 5, 1);
        params.not_after = date_time_ymd(2026, 7, 1);
    });
    let (_publish, authorities) = source(Some(ca.authorities()));
    let good = |time| certificate.user(&authorities.in_force(), at(time)).is_ok();
    assert!(!good("2026-04-30T23:59:59Z"));
    assert!(good(NOW) && good("2026-07-01T00:00:00Z"));
    assert!(!good("2026-07-01T00:00:01Z"));
    assert!(good(NOW));
}

/// rustls doesn't look at a trust anchor's own time; Go does.
#[test]
fn an_expired_ca_vouches_for_nobody() {
    let ca = Ca::with(|params| {
        params.not_before = date_time_ymd(2026, 5, 1);
        params.not_after = date_time_ymd(2026, 7, 1);
    });
    let certificate = ca.client(named("jane"));
    assert!(user(&certificate, &ca, NOW).is_ok());
    assert!(user(&certificate, &ca, "2026-07-01T00:00:01Z").is_err());
}

/// The CAs in force now count, also for a connection that was good under others.
#[test]
fn a_ca_that_is_taken_back_vouches_no_longer() {
    let (ca, other) = (Ca::new(), Ca::new());
    let certificate = ca.client(named("jane"));
    let (publish, authorities) = source(Some(ca.authorities()));
    let judge = || certificate.user(&authorities.in_force(), at(NOW));
    assert!(judge().unwrap().is_some());
    publish.send_replace(Some(other.authorities()));
    assert!(matches!(judge(), Err(CertificateError::NotVouchedFor(_))));
    publish.send_replace(Some(ca.authorities()));
    assert!(judge().unwrap().is_some());
}

#[test]
fn any_ca_of_the_union_vouches() {
    let (signer, cluster) = (Ca::new(), Ca::new());
    let sources = |known: Bundle| {
        Authorities::union([watch::channel(Some(signer.authorities())).1, watch::channel(known).1]).in_force()
    };
    let (one, another) = (signer.client(named("jane")), cluster.client(named("kubelet")));
    for certificate in [&one, &another] {
        assert!(
            certificate
                .user(&sources(Some(cluster.authorities())), at(NOW))
                .unwrap()
                .is_some()
        );
    }
    // While the cluster's can't be read, nobody is turned away for it.
    assert!(one.user(&sources(None), at(NOW)).unwrap().is_some());
    assert_eq!(
        another.user(&sources(None), at(NOW)),
        Err(CertificateError::AuthoritiesUnknown)
    );
}

#[test]
fn where_there_is_no_ca_a_certificate_says_nothing() {
    let certificate = Ca::new().client(named("jane"));
    let (_publish, none) = source(Some(Arc::from([])));
    assert_eq!(certificate.user(&none.in_force(), at(NOW)), Ok(None));
    assert_eq!(certificate.user(&Authorities::default().in_force(), at(NOW)), Ok(None));
}

#[test]
fn an_intermediate_that_is_sent_along_counts() {
    let ca = Ca::new();
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.not_after = date_time_ymd(2026, 7, 1);
    let between = params.signed_by(&key, &ca.issuer).unwrap().der().clone();
    let below = Ca {
        pem: String::new(),
        issuer: Issuer::new(params, key),
    };
    let leaf = below.sign(named("jane"));
    let alone = Certificate::shown(Some(std::slice::from_ref(&leaf))).unwrap();
    assert!(user(&alone, &ca, NOW).is_err());
    let whole = Certificate::shown(Some(&[leaf, between])).unwrap();
    assert!(user(&whole, &ca, NOW).is_ok());
    assert!(user(&whole, &ca, "2026-07-02T00:00:00Z").is_err());
}

#[rstest]
#[case::nobody(&[], Ok(None))]
#[case::empty_name(&[(DnType::CommonName, DnValue::Utf8String(String::new()))], Ok(None))]
#[case::groups_alone(&[(DnType::OrganizationName, DnValue::Utf8String("devs".into()))], Ok(None))]
#[case::name_in_ucs2(
    &[(DnType::CommonName, DnValue::BmpString("jane".try_into().unwrap()))],
    Err(CertificateError::Unreadable("common name"))
)]
#[case::empty_uid(
    &[(DnType::CommonName, DnValue::Utf8String("jane".into())),
      (DnType::CustomDnType(vec![1, 3, 6, 1, 4, 1, 57683, 2]), DnValue::Utf8String(String::new()))],
    Err(CertificateError::Uid)
)]
fn odd_subjects(#[case] subject: &[(DnType, DnValue)], #[case] expected: Result<Option<()>, CertificateError>) {
    let ca = Ca::new();
    let certificate = ca.client(|params| {
        for (kind, value) in subject {
            params.distinguished_name.push(kind.clone(), value.clone());
        }
    });
    assert_eq!(user(&certificate, &ca, NOW).map(|user| user.map(drop)), expected);
}

/// A certificate that this doesn't understand can't be passed by.
#[test]
fn an_unknown_critical_extension_is_refused() {
    let ca = Ca::new();
    let certificate = ca.client(|params| {
        named("jane")(params);
        let mut unknown = CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 57683, 99], vec![5, 0]);
        unknown.set_criticality(true);
        params.custom_extensions = vec![unknown];
    });
    assert!(user(&certificate, &ca, NOW).is_err());
}

#[test]
fn a_bundle_that_is_no_ca_is_refused_by_its_place() {
    for pem in ["", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
        let said = parse("spec.callerIdentity.signerCA", pem.as_bytes())
            .unwrap_err()
            .to_string();
        assert!(said.starts_with("spec.callerIdentity.signerCA"), "{said}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// Whatever a certificate names goes out exactly so, or not at all.
    #[test]
    fn what_a_certificate_names_is_carried_exactly_or_not_at_all(name in "\\PC{1,24}|[ -~\\x00-\\x1f]{1,12}", group in "\\PC{0,12}") {
        let ca = Ca::new();
        let certificate = ca.client(|params| {
            params.distinguished_name.push(DnType::CommonName, name.clone());
            params.distinguished_name.push(DnType::OrganizationName, group.clone());
        });
        let user = user(&certificate, &ca, NOW).unwrap().unwrap();
        prop_assert_eq!(user.username.as_deref(), Some(name.as_str()));
        let Ok(acts_as) = ActsAs::caller(&user) else {
            let is_plain = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic());
            prop_assert!(!is_plain(&name) || !is_plain(&group) || name == "system:anonymous");
            return Ok(());
        };
        let lines: Vec<_> = acts_as.lines().iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect();
        prop_assert_eq!(lines[0], ("impersonate-user", name.as_bytes()));
        prop_assert_eq!(lines[1], ("impersonate-group", group.as_bytes()));
        prop_assert_eq!(lines[2], ("impersonate-group", "system:authenticated".as_bytes()));
        prop_assert_eq!(lines[3].0, "impersonate-extra-authentication.kubernetes.io%2fcredential-id");
        prop_assert_eq!(lines.len(), 4);
    }
}
