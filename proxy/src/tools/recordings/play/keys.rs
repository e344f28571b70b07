//! What keys mean.

use std::time::Duration;

use crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

/// What a key asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Key {
    /// Stop, or go on.
    Pause,
    /// Back by so much.
    Back(Duration),
    /// On by so much.
    On(Duration),
    /// To so many tenths of the whole.
    Tenth(u8),
    /// To the end.
    End,
    /// Stop, one event further.
    StepOn,
    /// Stop, one event before.
    StepBack,
    /// Twice as fast.
    Faster,
    /// Half as fast.
    Slower,
    /// As fast as it was.
    AsItWas,
    /// The status line, or a line more of the recording.
    Status,
    /// The keys.
    Help,
    /// Enough.
    Quit,
}

const SHORT: Duration = Duration::from_secs(5);
const LONG: Duration = Duration::from_mins(1);

/// What the help says.
pub(super) const HELP: &str =
    "space pause  ←/→ 5s  ↓/↑ 1m  ,/. step  -/+ speed  = as it was  0-9 seek  g/G start/end  h hide  q quit";

/// What a key means, if anything.
pub(super) fn meant(key: KeyEvent) -> Option<Key> {
    if key.kind == KeyEventKind::Release {
        return None;
    }
    if key.modifiers.intersects(KeyModifiers::CONTROL | KeyModifiers::ALT) {
        let leaves = matches!(key.code, KeyCode::Char('c' | 'd')) && key.modifiers == KeyModifiers::CONTROL;
        return leaves.then_some(Key::Quit);
    }
    Some(match key.code {
        KeyCode::Char(' ' | 'p') => Key::Pause,
        KeyCode::Left => Key::Back(SHORT),
        KeyCode::Right => Key::On(SHORT),
        KeyCode::Down | KeyCode::PageDown => Key::Back(LONG),
        KeyCode::Up | KeyCode::PageUp => Key::On(LONG),
        KeyCode::Home | KeyCode::Char('g') => Key::Tenth(0),
        KeyCode::End | KeyCode::Char('G') => Key::End,
        KeyCode::Char(digit @ '0'..='9') => Key::Tenth(u8::try_from(digit.to_digit(10)?).ok()?),
        KeyCode::Char('.') => Key::StepOn,
        KeyCode::Char(',') => Key::StepBack,
        KeyCode::Char('+' | '>') => Key::Faster,
        KeyCode::Char('-' | '<') => Key::Slower,
        KeyCode::Char('=') => Key::AsItWas,
        KeyCode::Char('h') => Key::Status,
        KeyCode::Char('?') => Key::Help,
        KeyCode::Char('q') | KeyCode::Esc => Key::Quit,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case(KeyCode::Char(' '), KeyModifiers::NONE, Some(Key::Pause))]
    #[case(KeyCode::Left, KeyModifiers::NONE, Some(Key::Back(SHORT)))]
    #[case(KeyCode::Up, KeyModifiers::NONE, Some(Key::On(LONG)))]
    #[case(KeyCode::Char('7'), KeyModifiers::NONE, Some(Key::Tenth(7)))]
    #[case(KeyCode::Char('G'), KeyModifiers::SHIFT, Some(Key::End))]
    #[case(KeyCode::Char('c'), KeyModifiers::CONTROL, Some(Key::Quit))]
    #[case(KeyCode::Char('q'), KeyModifiers::ALT, None)]
    #[case(KeyCode::Char('x'), KeyModifiers::NONE, None)]
    fn keys_mean(#[case] code: KeyCode, #[case] modifiers: KeyModifiers, #[case] expected: Option<Key>) {
        assert_eq!(meant(KeyEvent::new(code, modifiers)), expected);
    }

    #[test]
    fn a_key_that_is_let_go_means_nothing() {
        let released = KeyEvent::new_with_kind(KeyCode::Char('q'), KeyModifiers::NONE, KeyEventKind::Release);
        assert_eq!(meant(released), None);
    }

    #[test]
    fn the_help_names_what_there_is() {
        for (shown, key) in [
            ('h', Key::Status),
            ('q', Key::Quit),
            ('=', Key::AsItWas),
            (',', Key::StepBack),
        ] {
            assert!(HELP.contains(shown));
            assert_eq!(meant(KeyCode::Char(shown).into()), Some(key));
        }
    }
}
