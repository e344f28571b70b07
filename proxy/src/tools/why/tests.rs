use clap::Parser;

use super::*;
use crate::tools::why::finding::Cause;

#[derive(Debug, Parser)]
struct Line {
    #[command(flatten)]
    ask: AskOptions,
}

fn findings() -> [Finding; 2] {
    let finding = |outcome, what: &str, cause, remedy: Option<&str>| Finding {
        outcome,
        what: what.to_owned(),
        cause,
        remedy: remedy.map(str::to_owned),
    };
    [
        finding(Outcome::Ok, "label: there", None, None),
        finding(
            Outcome::Fail,
            "session: gone\u{1b}[2J",
            Some(Cause::SessionNotFound),
            Some("make it"),
        ),
    ]
}

fn written(form: WhyForm) -> String {
    let findings = findings();
    let mut out = anstream::StripStream::new(Vec::new());
    write(&mut out, form, "support/shell", &findings, Verdict::of(&findings)).unwrap();
    String::from_utf8(out.into_inner()).unwrap()
}

#[test]
fn people_read_lines_and_programs_names() {
    let expected = "[ok]   label: there\n[FAIL] session: gone\u{fffd}[2J\n       make it\n\
         support/shell: intercepted, and it can't act; mend the first [FAIL]\n";
    assert_eq!(written(WhyForm::Text), expected);
    let json: serde_json::Value = serde_json::from_str(&written(WhyForm::Json)).unwrap();
    assert_eq!(json["verdict"], "cannot-act");
    assert_eq!(json["steps"][1]["cause"], "session-not-found");
    assert_eq!(json["steps"][1]["outcome"], "fail");
    assert!(json["steps"][0].get("cause").is_none(), "{json}");
    assert!(written(WhyForm::Yaml).contains("cause: session-not-found"));
}

#[tokio::test]
async fn that_no_agent_answers_is_a_finding() {
    let directory = tempfile::tempdir().unwrap();
    let options = WhyOptions {
        pod: "shell".to_owned(),
        namespace: Some("support".to_owned()),
        output: WhyForm::Text,
        ask: Line::try_parse_from(["why"]).unwrap().ask,
    };
    let facts = local(&options, &directory.path().join("operator.sock")).await.unwrap();
    assert_eq!(facts.pod, "support/shell");
    let findings = judge(&facts, Timestamp::now());
    assert_eq!(findings[0].cause, Some(Cause::AgentSilent));
    assert!(
        findings[0].remedy.as_deref().unwrap().contains("--socket"),
        "{findings:?}"
    );
    assert_eq!(Verdict::of(&findings).exit_code(), 5);
}
