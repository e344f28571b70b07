use ratatui::{Terminal, backend::TestBackend};
use tokio::time::Instant;

use super::*;
use crate::tools::{
    live::Heard,
    top::state::tests::{press, three},
};

fn drawn(state: &mut State, width: u16, height: u16) -> Vec<String> {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal
        .draw(|frame| draw(frame, state, Timestamp::UNIX_EPOCH))
        .unwrap();
    let buffer = terminal.backend().buffer().clone();
    let rows = buffer.content().chunks(usize::from(width));
    rows.map(|row| {
        let line: String = row.iter().map(ratatui::buffer::Cell::symbol).collect();
        line.trim_end().to_owned()
    })
    .collect()
}

#[test]
fn the_sessions_fit_a_small_screen() {
    let screen = drawn(&mut three(), 80, 24);
    assert_eq!(screen.len(), 24);
    assert_eq!(screen[0], "understudy 3 sessions  3/3 agents  25.0 req/s  5.0 err/s");
    let expected = [
        "NAMESPACE   SESSION      AS              PODS REQ/S↓  ERR/S  +P99  OPEN EXPIRES",
        "support     alice        sa:prod:viewer     1   20.0    1.0 100µs     1 never",
        "support     bob          sa:prod:viewer     1    5.0    4.0 100µs     1 never",
        "support     carol        sa:prod:viewer     1      -      -     -     1 never",
    ];
    assert_eq!(screen[1..5], expected);
    assert!(screen[23].contains("q quit"), "{screen:#?}");
}

#[test]
fn a_wide_screen_has_all_columns_and_a_narrow_one_no_panic() {
    let screen = drawn(&mut three(), 130, 10);
    assert!(screen[1].contains("NODES") && screen[1].contains("+P50"), "{screen:#?}");
    for (width, height) in [(1, 1), (5, 2), (20, 3), (300, 100)] {
        for keys in ["", "?", "/ x", "enter", "l"] {
            let mut state = three();
            if !keys.is_empty() {
                press(&mut state, keys);
            }
            assert_eq!(drawn(&mut state, width, height).len(), usize::from(height));
        }
    }
}

#[test]
fn an_agent_that_cannot_be_reached_is_said() {
    let mut state = three();
    for node in ["d", "e", "f", "g"] {
        let heard = Heard::Lost(node.into(), "no agent\u{1b}[2J".to_owned());
        state.model.heard(heard, Instant::now());
    }
    let screen = drawn(&mut state, 80, 24);
    assert_eq!(screen[1], "d: no agent\u{fffd}[2J");
    assert_eq!(screen[3], "f: no agent\u{fffd}[2J (and 1 more)");
    assert!(screen[4].starts_with("NAMESPACE"), "{screen:#?}");
}

#[test]
fn the_help_fits_a_small_screen() {
    let mut state = three();
    press(&mut state, "?");
    let screen = drawn(&mut state, 80, 24).join("\n");
    for column in Column::ALL {
        assert!(screen.contains(column.meaning()), "{screen}");
    }
    assert!(screen.contains("└"), "its lower edge is there: {screen}");
}

#[test]
fn pods_and_requests_are_shown() {
    let mut state = three();
    press(&mut state, "enter");
    let screen = drawn(&mut state, 80, 24);
    assert!(screen[0].starts_with("understudy pods of support/alice"), "{screen:#?}");
    assert!(
        screen[2].starts_with("support/alice-shell") && screen[2].contains("intercepted"),
        "{screen:#?}"
    );
    press(&mut state, "enter");
    assert!(drawn(&mut state, 80, 24)[1].starts_with("Nothing has come"));
    for number in 0..30 {
        state.event(Line {
            time: "12:00:00.000".to_owned(),
            whose: "shell".to_owned(),
            what: format!("get pods/{number}"),
            outcome: "200 3ms".to_owned(),
            told: Told::Good,
        });
    }
    state.news(Some("the agent broke off".to_owned()));
    let screen = drawn(&mut state, 80, 24);
    assert_eq!(screen[1], "the agent broke off");
    assert_eq!(
        screen[22], "12:00:00.000  200 3ms  get pods/29  shell",
        "the latest is last"
    );
}

#[test]
fn that_there_is_nothing_is_said() {
    let mut state = State::new(None);
    assert_eq!(drawn(&mut state, 80, 24)[1], "Waiting for agents.");
    let nothing = Heard::Line("box".into(), r#"{"node":"box","version":"","sessions":[]}"#.into());
    state.model.heard(nothing, Instant::now());
    assert!(drawn(&mut state, 80, 24)[1].starts_with("No sessions"));
    let mut state = three();
    press(&mut state, "/ z");
    let screen = drawn(&mut state, 80, 24);
    assert!(screen[1].starts_with("No session is called so"), "{screen:#?}");
    assert!(screen[23].starts_with("/z"), "{screen:#?}");
}
