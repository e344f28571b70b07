use std::time::Duration;

use rstest::rstest;
use tokio::time::Instant;

use super::*;
use crate::tools::{live::Heard, tail::Told, top::model::tests::said};

/// alice with 20 requests a second, bob with 5 and most failures, and carol, who has only just come.
pub(in crate::tools::top) fn three() -> State {
    let mut state = State::new(None);
    let start = Instant::now();
    for (second, node, name, requests, failures) in [
        (0, "a", "alice", 0, 0),
        (0, "b", "bob", 0, 0),
        (1, "a", "alice", 20, 1),
        (1, "b", "bob", 5, 4),
        (1, "c", "carol", 7, 0),
    ] {
        let heard = said(node, name, requests, failures);
        state.model.heard(heard, start + Duration::from_secs(second));
    }
    state
}

pub(in crate::tools::top) fn press(state: &mut State, keys: &str) -> Action {
    let mut action = Action::Nothing;
    for key in keys.split(' ') {
        let code = match key {
            "enter" => KeyCode::Enter,
            "esc" => KeyCode::Esc,
            "back" => KeyCode::Backspace,
            "down" => KeyCode::Down,
            "up" => KeyCode::Up,
            "pgdn" => KeyCode::PageDown,
            letter => KeyCode::Char(letter.chars().next().unwrap()),
        };
        action = state.key(KeyEvent::from(code));
    }
    action
}

fn names(state: &State) -> Vec<String> {
    state.rows().into_iter().map(|row| row.key.name).collect()
}

fn key(name: &str) -> Key {
    Key {
        namespace: "support".to_owned(),
        name: name.to_owned(),
    }
}

fn under_the_bar(state: &State) -> Option<String> {
    let rows = state.rows();
    Some(rows.get(state.bar(&rows)?)?.key.name.clone())
}

#[rstest]
#[case::busiest_first("", &["alice", "bob", "carol"])]
#[case::and_last("R", &["carol", "bob", "alice"])]
#[case::failures("E", &["bob", "alice", "carol"])]
#[case::name("N", &["alice", "bob", "carol"])]
#[case::name_backwards("N N", &["carol", "bob", "alice"])]
#[case::alike_by_name("P", &["alice", "bob", "carol"])]
#[case::filtered("/ O B", &["bob"])]
#[case::filtered_by_whom("/ v i e w", &["alice", "bob", "carol"])]
#[case::filter_kept("/ b enter N", &["bob"])]
#[case::filter_given_up("/ o b esc", &["alice", "bob", "carol"])]
#[case::filter_cleared("/ o b enter esc", &["alice", "bob", "carol"])]
#[case::letter_taken_back("/ b x back enter", &["bob"])]
#[case::nothing_left("/ z", &[])]
fn orders_and_filters(#[case] keys: &str, #[case] expected: &[&str]) {
    let mut state = three();
    if !keys.is_empty() {
        press(&mut state, keys);
    }
    assert_eq!(names(&state), expected);
}

#[rstest]
#[case("down", "bob")]
#[case("j j", "carol")]
#[case("j j j j", "carol")]
#[case("G", "carol")]
#[case("G g", "alice")]
#[case("j up", "alice")]
#[case("pgdn", "carol")]
fn the_bar_moves(#[case] keys: &str, #[case] expected: &str) {
    let mut state = three();
    press(&mut state, keys);
    assert_eq!(under_the_bar(&state).as_deref(), Some(expected));
}

#[test]
fn the_bar_stays_on_its_session_wherever_that_goes() {
    let mut state = three();
    press(&mut state, "j R");
    assert_eq!(under_the_bar(&state).as_deref(), Some("bob"));
    state.model.heard(Heard::Gone("b".into()), Instant::now());
    assert_eq!(
        under_the_bar(&state).as_deref(),
        Some("carol"),
        "the first, where it is gone"
    );
}

#[test]
fn one_goes_in_and_comes_back() {
    let mut state = three();
    press(&mut state, "j enter");
    assert_eq!(*state.view(), View::Pods(key("bob")));
    assert_eq!(state.pods()[0].pod.name, "support/bob-shell");
    assert_eq!(press(&mut state, "enter"), Action::Follow(key("bob")));
    let line = Line {
        time: String::new(),
        whose: String::new(),
        what: "get pods".to_owned(),
        outcome: "200".to_owned(),
        told: Told::Good,
    };
    for _ in 0..=LINES {
        state.event(line.clone());
    }
    assert_eq!(state.lines.len(), LINES, "what is kept is bounded");
    assert_eq!(press(&mut state, "esc"), Action::Leave);
    assert_eq!(*state.view(), View::Pods(key("bob")));
    assert_eq!(press(&mut state, "esc"), Action::Nothing);
    assert_eq!(*state.view(), View::Sessions);
    assert_eq!(press(&mut state, "l"), Action::Follow(key("bob")));
    assert!(state.lines.is_empty(), "those of before are gone");
    assert_eq!(press(&mut state, "esc esc q"), Action::Quit);
}

#[test]
fn nothing_can_be_gone_into_where_there_is_nothing() {
    let mut state = State::new(None);
    assert_eq!(press(&mut state, "enter l j G"), Action::Nothing);
    assert_eq!(*state.view(), View::Sessions);
}

#[test]
fn letters_of_the_filter_are_no_keys_and_control_c_is_one_always() {
    let mut state = three();
    assert_eq!(press(&mut state, "/ q ?"), Action::Nothing);
    assert_eq!((state.filter.as_str(), state.shows_help), ("q?", false));
    let control_c = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
    assert_eq!(state.key(control_c), Action::Quit);
    press(&mut state, "esc ?");
    assert!(state.shows_help);
    assert_eq!(press(&mut state, "q"), Action::Nothing, "any key leaves the help");
    assert!(!state.shows_help);
}
