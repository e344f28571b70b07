//! The tables of `checker_test.go` and `validation_test.go` of k8s.io/apiserver, the policy of Kubernetes' documentation,
//! and what is the agent's own.

use rstest::rstest;

use super::*;

const GET_POD: (&str, &str) = ("GET", "/api/v1/namespaces/default/pods/busybox");
const GET_ROLE: (&str, &str) = ("GET", "/apis/rbac.authorization.k8s.io/v1beta1/clusterroles/edit");
const GET_LOGS: (&str, &str) = ("GET", "/logs/kubelet.log");
const GET_POD_LOG: (&str, &str) = ("GET", "/api/v1/namespaces/default/pods/busybox/log");
const UPDATE_ROLE_STATUS: (&str, &str) = (
    "PUT",
    "/apis/rbac.authorization.k8s.io/v1beta1/clusterroles/somerole/status",
);

fn rule(name: &str) -> &'static str {
    match name {
        "default" => "{level: Metadata}",
        "create" => "{level: Request, verbs: [create]}",
        "tims" => "{level: Metadata, users: [tim@k8s.io]}",
        "humans" => "{level: Metadata, userGroups: [humans]}",
        "serviceAccounts" => "{level: Request, userGroups: [system:serviceaccounts]}",
        "getPods" => "{level: RequestResponse, verbs: [get], resources: [{resources: [pods]}]}",
        "getPodLogs" => "{level: Request, verbs: [get], resources: [{resources: [pods/log]}]}",
        "getPodWildcard" => "{level: Request, verbs: [get], resources: [{resources: [\"*\"]}]}",
        "getResourceWildcard" => "{level: Request, verbs: [get], resources: [{resources: [\"*/log\"]}]}",
        "getSubResourceWildcard" => "{level: Request, verbs: [get], resources: [{resources: [\"pods/*\"]}]}",
        "getClusterRoles" => {
            "{level: RequestResponse, verbs: [get], namespaces: [\"\"], \
             resources: [{group: rbac.authorization.k8s.io, resources: [clusterroles]}]}"
        }
        "anyStatus" => {
            "{level: RequestResponse, verbs: [update], resources: [{group: \"*\", resources: [\"*/status\"]}]}"
        }
        "getLogs" => "{level: RequestResponse, verbs: [get], nonResourceURLs: [\"/logs*\"]}",
        "getMetrics" => "{level: Request, verbs: [get], nonResourceURLs: [/metrics]}",
        "clusterRoleEdit" => {
            "{level: Request, resources: [{group: rbac.authorization.k8s.io, resources: [clusterroles], resourceNames: [edit]}]}"
        }
        "omitReceived" => "{level: Request, omitStages: [RequestReceived]}",
        "onlyPanic" => "{level: Request, omitStages: [RequestReceived, ResponseStarted, ResponseComplete]}",
        other => panic!("no rule {other}"),
    }
}

fn policy(text: &str) -> Policy {
    Policy::parse(text, Path::new("policy.yaml")).unwrap()
}

fn of_rules(head: &str, names: &[&str]) -> Policy {
    let rules: Vec<String> = names.iter().map(|name| format!("- {}", rule(name))).collect();
    policy(&format!(
        "apiVersion: audit.k8s.io/v1\nkind: Policy\n{head}rules:\n{}\n",
        rules.join("\n")
    ))
}

fn user(name: &str, groups: &[&str]) -> User {
    let groups = groups.iter().map(|group| (*group).to_owned()).collect();
    User::new(name, None, groups, &std::collections::BTreeMap::new())
}

fn tim() -> User {
    user("tim@k8s.io", &["humans", "developers"])
}

fn reading((method, uri): (&str, &str)) -> Reading {
    RequestInfo::parse(&method.parse().unwrap(), &uri.parse().unwrap())
}

fn asked<'r>(request: (&'r str, &'r str), reading: &'r Reading, user: Option<&'r User>) -> Attributes<'r> {
    Attributes {
        users: [user, None],
        reading,
        method: request.0,
        uri: request.1,
        is_upgraded: false,
        is_refused: false,
    }
}

/// What the rules alone say, as kube-apiserver has it.
fn said(policy: &Policy, asked: &Attributes<'_>) -> Extent {
    let matching = policy.rules.iter().find(|rule| rule.matches(asked));
    matching.map_or(policy.otherwise, |rule| rule.extent)
}

#[rstest]
#[case(GET_POD, Level::Metadata, &["default"])]
#[case(GET_POD, Level::None, &["create"])]
#[case(GET_POD, Level::Metadata, &["tims"])]
#[case(GET_POD, Level::Metadata, &["humans"])]
#[case(GET_POD, Level::None, &["serviceAccounts"])]
#[case(GET_POD, Level::RequestResponse, &["getPods"])]
#[case(GET_POD, Level::None, &["getClusterRoles"])]
#[case(GET_POD, Level::None, &["getLogs"])]
#[case(GET_POD, Level::None, &["getMetrics"])]
#[case(GET_POD, Level::Metadata, &["getMetrics", "serviceAccounts", "default"])]
#[case(GET_POD, Level::RequestResponse, &["getMetrics", "getPods", "default"])]
#[case(GET_POD, Level::RequestResponse, &["getPodLogs", "getPods"])]
#[case(GET_ROLE, Level::Metadata, &["default"])]
#[case(GET_ROLE, Level::None, &["create"])]
#[case(GET_ROLE, Level::None, &["getPods"])]
#[case(GET_ROLE, Level::RequestResponse, &["getClusterRoles"])]
#[case(GET_ROLE, Level::Request, &["clusterRoleEdit", "getClusterRoles"])]
#[case(GET_ROLE, Level::None, &["getLogs"])]
#[case(GET_ROLE, Level::RequestResponse, &["getMetrics", "getClusterRoles", "default"])]
#[case(GET_ROLE, Level::None, &["getPodLogs", "getPods"])]
#[case(GET_LOGS, Level::Metadata, &["default"])]
#[case(GET_LOGS, Level::None, &["create"])]
#[case(GET_LOGS, Level::None, &["getPods"])]
#[case(GET_LOGS, Level::None, &["getClusterRoles"])]
#[case(GET_LOGS, Level::RequestResponse, &["getLogs"])]
#[case(GET_LOGS, Level::None, &["getMetrics"])]
#[case(GET_LOGS, Level::RequestResponse, &["getLogs", "getClusterRoles", "default"])]
#[case(GET_POD_LOG, Level::Request, &["getPodLogs", "getPods"])]
#[case(GET_POD_LOG, Level::None, &["getPods"])]
#[case(GET_POD_LOG, Level::Request, &["getPodWildcard"])]
#[case(GET_POD_LOG, Level::Request, &["getResourceWildcard"])]
#[case(GET_POD_LOG, Level::Request, &["getSubResourceWildcard"])]
#[case(GET_POD, Level::Request, &["getSubResourceWildcard"])]
#[case(GET_POD, Level::None, &["getResourceWildcard"])]
#[case(UPDATE_ROLE_STATUS, Level::RequestResponse, &["anyStatus"])]
fn rules_match_as_kubernetes_has_it(#[case] request: (&str, &str), #[case] expected: Level, #[case] names: &[&str]) {
    let (tim, reading) = (tim(), reading(request));
    for (head, omit_started) in ["", "omitStages: [RequestReceived, ResponseStarted]\n"]
        .into_iter()
        .zip([false, true])
    {
        let extent = said(&of_rules(head, names), &asked(request, &reading, Some(&tim)));
        assert_eq!(
            (extent.level, extent.omit_started),
            (expected, omit_started),
            "{names:?}"
        );
    }
}

#[rstest]
#[case("", &["omitReceived", "getPods"], false, false)]
#[case("", &["onlyPanic", "getPods"], true, true)]
#[case("omitStages: [ResponseStarted]\n", &["omitReceived"], true, false)]
#[case("omitStages: [ResponseComplete]\n", &["default"], false, true)]
fn stages_are_omitted_by_either(
    #[case] head: &str,
    #[case] names: &[&str],
    #[case] started: bool,
    #[case] complete: bool,
) {
    let reading = reading(GET_POD);
    let extent = said(&of_rules(head, names), &asked(GET_POD, &reading, None));
    assert_eq!((extent.omit_started, extent.omit_complete), (started, complete));
}

#[rstest]
#[case("tims", Level::None)]
#[case("humans", Level::None)]
#[case("default", Level::Metadata)]
fn who_is_unknown_is_in_no_rule_of_users(#[case] name: &str, #[case] expected: Level) {
    let reading = reading(GET_POD);
    let extent = said(&of_rules("", &[name]), &asked(GET_POD, &reading, None));
    assert_eq!(extent.level, expected);
}

#[rstest]
#[case("false", "", false)]
#[case("true", "", true)]
#[case("true", ", omitManagedFields: false", false)]
#[case("false", ", omitManagedFields: true", true)]
fn a_rule_has_the_last_word_on_managed_fields(#[case] whole: &str, #[case] of_rule: &str, #[case] expected: bool) {
    let policy = policy(&format!(
        "apiVersion: audit.k8s.io/v1\nkind: Policy\nomitManagedFields: {whole}\nrules:\n- {{level: RequestResponse{of_rule}}}\n"
    ));
    let reading = reading(GET_POD);
    assert_eq!(
        policy.extent(&asked(GET_POD, &reading, None)).omit_managed_fields,
        expected
    );
}

/// <https://kubernetes.io/docs/tasks/debug/debug-cluster/audit/#audit-policy>
const DOCUMENTED: &str = r#"
apiVersion: audit.k8s.io/v1 # This is required.
kind: Policy
# Don't generate audit events for all requests in RequestReceived stage.
omitStages:
  - "RequestReceived"
rules:
  # Log pod changes at RequestResponse level
  - level: RequestResponse
    resources:
    - group: ""
      # Resource "pods" doesn't match requests to any subresource of pods,
      # which is consistent with the RBAC policy.
      resources: ["pods"]
  # Log "pods/log", "pods/status" at Metadata level
  - level: Metadata
    resources:
    - group: ""
      resources: ["pods/log", "pods/status"]

  # Don't log requests to a configmap called "controller-leader"
  - level: None
    resources:
    - group: ""
      resources: ["configmaps"]
      resourceNames: ["controller-leader"]

  # Don't log watch requests by the "system:kube-proxy" on endpoints or services
  - level: None
    users: ["system:kube-proxy"]
    verbs: ["watch"]
    resources:
    - group: "" # core API group
      resources: ["endpoints", "services"]

  # Don't log authenticated requests to certain non-resource URL paths.
  - level: None
    userGroups: ["system:authenticated"]
    nonResourceURLs:
    - "/api*" # Wildcard matching.
    - "/version"

  # Log the request body of configmap changes in kube-system.
  - level: Request
    resources:
    - group: "" # core API group
      resources: ["configmaps"]
    # This rule only applies to resources in the "kube-system" namespace.
    # The empty string "" can be used to select non-namespaced resources.
    namespaces: ["kube-system"]

  # Log configmap and secret changes in all other namespaces at the Metadata level.
  - level: Metadata
    resources:
    - group: "" # core API group
      resources: ["secrets", "configmaps"]

  # Log all other resources in core and extensions at the Request level.
  - level: Request
    resources:
    - group: "" # core API group
    - group: "extensions" # Version of group should NOT be included.

  # A catch-all rule to log all other requests at the Metadata level.
  - level: Metadata
    # Long-running requests like watches that fall under this rule will not
    # generate an audit event in RequestReceived.
    omitStages:
      - "RequestReceived"
"#;

#[rstest]
#[case("POST", "/api/v1/namespaces/a/pods", Level::RequestResponse)]
#[case("GET", "/api/v1/namespaces/a/pods/x/log", Level::Metadata)]
#[case("GET", "/api/v1/namespaces/a/pods/x/exec", Level::Request)]
#[case("GET", "/api/v1/namespaces/a/configmaps/controller-leader", Level::None)]
#[case("GET", "/api/v1/namespaces/kube-system/configmaps/x", Level::Request)]
#[case("GET", "/api/v1/namespaces/a/configmaps/x", Level::Metadata)]
#[case("GET", "/api/v1/watch/services", Level::None)]
#[case("GET", "/api/v1/services?watch=1", Level::None)]
#[case("GET", "/api/v1/services", Level::Request)]
#[case("GET", "/apis/apps/v1/deployments", Level::Metadata)]
#[case("GET", "/api", Level::None)]
#[case("GET", "/apis/apps/v1", Level::None)]
#[case("GET", "/%61pi?x=1", Level::None)]
#[case("GET", "/version", Level::None)]
#[case("GET", "/version/x", Level::Metadata)]
#[case("GET", "/healthz", Level::Metadata)]
#[case("GET", "/apis/extensions/v1beta1/ingresses", Level::Request)]
// The agent's own: what was done is written whatever the rules say.
#[case("DELETE", "/api/v1/namespaces/a/configmaps/controller-leader", Level::Metadata)]
#[case("POST", "/version", Level::Metadata)]
fn the_policy_of_the_documentation(#[case] method: &str, #[case] uri: &str, #[case] expected: Level) {
    let proxy = user("system:kube-proxy", &["system:authenticated"]);
    let reading = reading((method, uri));
    let extent = policy(DOCUMENTED).extent(&asked((method, uri), &reading, Some(&proxy)));
    assert_eq!(extent.level, expected);
}

#[rstest]
#[case(GET_POD, false, false, true)]
#[case(("GET", "/api/v1/pods?watch=1"), false, false, true)]
#[case(("GET", "/healthz"), false, false, true)]
#[case(("HEAD", "/healthz"), false, false, true)]
#[case(("DELETE", "/api/v1/namespaces/a/pods"), false, false, false)]
#[case(("PATCH", "/api/v1/namespaces/a/pods/x"), false, false, false)]
#[case(("OPTIONS", "/api/v1/namespaces/a/pods/x"), false, false, false)]
#[case(("POST", "/healthz"), false, false, false)]
#[case(("GET", "/api/v1/namespaces/a/pods/x/exec?command=sh"), false, false, false)]
#[case(("GET", "/api/v1/namespaces/a/services/x/proxy/y"), false, false, false)]
#[case(("GET", "/api/v1/proxy/namespaces/a/pods/x"), false, false, false)]
#[case(("GET", "/api/v1//pods"), false, false, false)]
#[case(GET_POD, true, false, false)]
#[case(GET_POD, false, true, false)]
fn no_rule_hides_that_something_was_done(
    #[case] request: (&str, &str),
    #[case] is_upgraded: bool,
    #[case] is_refused: bool,
    #[case] silent: bool,
) {
    let reading = reading(request);
    let asked = Attributes {
        is_upgraded,
        is_refused,
        ..asked(request, &reading, None)
    };
    let head = "apiVersion: audit.k8s.io/v1\nkind: Policy\nrules:\n";
    for (rule, level) in [
        ("{level: None}", Level::Metadata),
        ("{level: Request, omitStages: [ResponseComplete]}", Level::Request),
        ("{level: Request, users: [nobody]}", Level::Metadata),
    ] {
        let extent = policy(&format!("{head}- {rule}\n")).extent(&asked);
        assert_eq!(extent.is_silent(), silent, "{rule}");
        assert!(silent || extent.level == level, "{rule}: {extent:?}");
    }
}

#[test]
fn rules_are_of_who_asked_or_of_who_acted() {
    let (pod, viewer) = (user("pod", &["pods"]), user("viewer", &["viewers"]));
    let reading = reading(GET_POD);
    let asked = Attributes {
        users: [Some(&pod), Some(&viewer)],
        ..asked(GET_POD, &reading, None)
    };
    for rule in [
        "users: [pod]",
        "users: [viewer]",
        "userGroups: [pods]",
        "userGroups: [viewers]",
    ] {
        let policy = policy(&format!(
            "apiVersion: audit.k8s.io/v1\nkind: Policy\nrules:\n- {{level: Request, {rule}}}\n"
        ));
        assert_eq!(policy.extent(&asked).level, Level::Request, "{rule}");
    }
}

#[test]
fn without_a_file_everything_is_written_at_metadata() {
    let reading = reading(GET_POD);
    let extent = Policy::default().extent(&asked(GET_POD, &reading, None));
    assert_eq!(extent, Extent::default());
}

/// The cases of `validation_test.go`, and of `reader_test.go`.
#[rstest]
#[case("{}", "rules[0].level is missing")]
#[case("{level: Bogus}", "rules[0].level \"Bogus\" is none")]
#[case(
    "{level: Metadata, nonResourceURLs: [logs]}",
    "rules[0].nonResourceURLs[0] \"logs\" doesn't begin with '/'"
)]
#[case(
    "{level: Metadata, nonResourceURLs: [\"\"]}",
    "rules[0].nonResourceURLs[0] \"\" doesn't begin with '/'"
)]
#[case(
    "{level: Metadata, nonResourceURLs: [/a, \"/*/logs\"]}",
    "rules[0].nonResourceURLs[1] \"/*/logs\" has a '*' before its end"
)]
#[case(
    "{level: Metadata, nonResourceURLs: [/logs*], resources: [{resources: [pods]}]}",
    "rules[0].nonResourceURLs goes neither"
)]
#[case(
    "{level: Metadata, nonResourceURLs: [/logs*], namespaces: [a]}",
    "rules[0].nonResourceURLs goes neither"
)]
#[case(
    "{level: Metadata, resources: [{group: rbac.authorization.k8s.io/v1beta1}]}",
    "rules[0].resources[0].group \"rbac.authorization.k8s.io/v1beta1\""
)]
#[case(
    "{level: Metadata, resources: [{group: Apps}]}",
    "rules[0].resources[0].group \"Apps\""
)]
#[case(
    "{level: Metadata, resources: [{resourceNames: [x]}]}",
    "rules[0].resources[0] has resourceNames without resources"
)]
#[case(
    "{level: Metadata, omitStages: [Bogus]}",
    "rules[0].omitStages[0] \"Bogus\" is no stage"
)]
#[case("{level: Metadata, user: [x]}", "unknown field")]
fn what_kubernetes_refuses_is_refused_by_name(#[case] rule: &str, #[case] expected: &str) {
    let text = format!("apiVersion: audit.k8s.io/v1\nkind: Policy\nrules:\n- {rule}\n");
    let error = Policy::parse(&text, Path::new("policy.yaml")).unwrap_err().to_string();
    assert!(error.starts_with("the audit policy policy.yaml: "), "{error}");
    assert!(error.contains(expected), "{error}");
}

#[rstest]
#[case("apiVersion: audit.k8s.io/v1\nkind: Policy\n", "rules is empty")]
#[case(
    "apiVersion: audit.k8s.io/v1beta1\nkind: Policy\nrules: [{level: None}]\n",
    "apiVersion \"audit.k8s.io/v1beta1\""
)]
#[case(
    "apiVersion: audit.k8s.io/v1\nkind: Event\nrules: [{level: None}]\n",
    "kind \"Event\""
)]
#[case("rules: [{level: None}]\n", "apiVersion \"\"")]
#[case(
    "apiVersion: audit.k8s.io/v1\nkind: Policy\nomitStages: [x]\nrules: [{level: None}]\n",
    "omitStages[0] \"x\""
)]
#[case("- a\n", "write it as an audit.k8s.io/v1 Policy")]
#[case("", "write apiVersion: audit.k8s.io/v1")]
fn what_is_no_policy_is_refused(#[case] text: &str, #[case] expected: &str) {
    let error = Policy::parse(text, Path::new("policy.yaml")).unwrap_err().to_string();
    assert!(error.contains(expected), "{error}");
}

#[test]
fn all_that_is_wrong_is_told_at_once() {
    let text = "apiVersion: audit.k8s.io/v1\nkind: Policy\nrules: [{level: X}, {level: Y}]\n";
    let error = Policy::parse(text, Path::new("p")).unwrap_err().to_string();
    assert!(
        error.contains("rules[0].level \"X\"") && error.contains("rules[1].level \"Y\""),
        "{error}"
    );
}

#[tokio::test]
async fn a_file_is_read_or_named() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("policy.yaml");
    std::fs::write(&path, DOCUMENTED).unwrap();
    assert_eq!(Policy::load(&path).await.unwrap(), policy(DOCUMENTED));
    let error = Policy::load(&directory.path().join("none"))
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("none"), "{error}");
}
