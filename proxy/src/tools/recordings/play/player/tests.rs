use rstest::rstest;

use super::*;
use crate::tools::recordings::tape::Head;

fn seconds(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds)
}

/// One that says a word at each second, and lasts ten.
fn player(idle_limit: Option<Duration>) -> Player {
    let said = [(1, "one"), (2, " two"), (3, " three"), (9, " nine")];
    let events = said.map(|(at, text)| Event {
        at: Duration::from_secs(at),
        what: What::Output(text.to_owned()),
    });
    let head = Head {
        width: 40,
        height: 2,
        title: "exec prod/web-0: sh\u{1b}[2J".to_owned(),
        ..Head::default()
    };
    let summary = Summary {
        head,
        length: Duration::from_secs(10),
        state: State::Whole("closed".to_owned()),
    };
    Player::new(summary, events.into(), idle_limit, Speed(1.0))
}

fn shows(player: &Player) -> String {
    let first = player.screen().rows(usize::MAX).next().unwrap();
    first.into_iter().map(|span| span.text).collect()
}

fn heed(player: &mut Player, keys: &[Key], now: Instant) {
    for key in keys {
        assert!(player.heed(*key, now).is_continue());
    }
}

const FIVE: Duration = Duration::from_secs(5);

#[test]
fn it_shows_what_was_shown_when_it_was() {
    let begun = Instant::now();
    let mut player = player(None);
    player.go_on(begun);
    for (at, shown, next) in [
        (0.5, "", Some(0.5)),
        (1.0, "one", Some(1.0)),
        (2.5, "one two", Some(0.5)),
        (8.9, "one two three", Some(0.1)),
        (9.5, "one two three nine", None),
    ] {
        let now = begun + seconds(at);
        player.tick(now);
        assert_eq!(shows(&player), shown, "{at}");
        let until = player.next_in(now).map(|until| until.as_millis());
        assert_eq!(until, next.map(|next| seconds(next).as_millis()), "{at}");
    }
    player.tick(begun + seconds(60.0));
    assert!(player.status(false).unwrap().starts_with(" ■ 0:10.0 / 0:10.0  1x"));
}

#[test]
fn a_pause_stops_it_and_nothing_is_missed() {
    let begun = Instant::now();
    let mut player = player(None);
    player.go_on(begun);
    heed(&mut player, &[Key::Pause], begun + seconds(1.5));
    player.tick(begun + seconds(100.0));
    assert_eq!(shows(&player), "one");
    assert!(player.status(false).unwrap().contains("‖ 0:01.5"));
    assert_eq!(player.next_in(begun), None);
    heed(&mut player, &[Key::Pause], begun + seconds(100.0));
    player.tick(begun + seconds(100.6));
    assert_eq!(shows(&player), "one two");
}

#[test]
fn twice_as_fast_is_half_as_long() {
    let begun = Instant::now();
    let mut player = player(None);
    player.go_on(begun);
    heed(&mut player, &[Key::Faster], begun + seconds(1.0));
    player.tick(begun + seconds(2.0));
    assert_eq!(shows(&player), "one two three", "one second, and two in the next");
    assert!(player.status(false).unwrap().contains("  2x"));
    heed(&mut player, &[Key::Slower, Key::Slower], begun + seconds(2.0));
    player.tick(begun + seconds(13.9));
    assert_eq!(shows(&player), "one two three");
    heed(&mut player, &[Key::AsItWas], begun + seconds(13.9));
    assert!(player.status(false).unwrap().contains("  1x"));
    heed(&mut player, &[Key::Slower; 20], begun + seconds(13.9));
    assert_eq!(player.speed, Speed(0.1));
    heed(&mut player, &[Key::Faster; 20], begun + seconds(13.9));
    assert_eq!(player.speed, Speed(64.0));
}

#[test]
fn it_goes_back_and_on_and_plays_from_there() {
    let begun = Instant::now();
    let mut player = player(None);
    for (keys, shown) in [
        (&[Key::On(FIVE)][..], "one two three"),
        (&[Key::On(FIVE)], "one two three nine"),
        (&[Key::On(FIVE)], "one two three nine"),
        (&[Key::Back(FIVE)], "one two three"),
        (&[Key::Tenth(2)], "one two"),
        (&[Key::End], "one two three nine"),
        (&[Key::Tenth(0)], ""),
        (&[Key::Back(FIVE)], ""),
        (&[Key::StepOn], "one"),
        (&[Key::StepOn, Key::StepOn], "one two three"),
        (&[Key::StepBack], "one two"),
        (&[Key::StepBack, Key::StepBack, Key::StepBack], ""),
        (&[Key::End, Key::StepOn], "one two three nine"),
    ] {
        heed(&mut player, keys, begun);
        assert_eq!(shows(&player), shown, "{keys:?}");
    }
    heed(&mut player, &[Key::Tenth(1), Key::Pause], begun);
    player.tick(begun + seconds(1.0));
    assert_eq!(shows(&player), "one two");
    // At the end, it begins again.
    heed(&mut player, &[Key::End], begun + seconds(1.0));
    player.tick(begun + seconds(1.0));
    heed(&mut player, &[Key::Pause], begun + seconds(1.0));
    assert_eq!(shows(&player), "");
}

#[test]
fn whatever_is_sought_is_shown_as_if_it_had_been_played() {
    let long: Vec<_> = (0..200)
        .map(|number| Event {
            at: Duration::from_secs(number),
            what: What::Output(format!("\u{1b}[3{}m{number}{}\r", number % 8, " ".repeat(8 * 1024))),
        })
        .collect();
    let (mut forth, mut back) = (player(None), player(None));
    for player in [&mut forth, &mut back] {
        (player.events, player.length) = (long.clone(), Duration::from_secs(199));
    }
    back.go_to(Duration::from_secs(199));
    assert!(back.kept.len() > 4, "{}", back.kept.len());
    for second in [150, 149, 100, 33, 32, 31, 0] {
        let at = Duration::from_secs(second);
        back.go_to(at);
        forth.go_to(Duration::ZERO);
        forth.kept.truncate(1);
        forth.go_to(at);
        let rows = |player: &Player| player.screen().rows(usize::MAX).collect::<Vec<_>>();
        assert_eq!(rows(&back), rows(&forth), "{second}");
        assert_eq!(back.screen().cursor(), forth.screen().cursor());
    }
}

#[test]
fn no_pause_is_longer_than_the_limit() {
    let player = player(Some(Duration::from_secs(2)));
    let times: Vec<_> = player.events.iter().map(|event| event.at.as_secs()).collect();
    assert_eq!((times, player.length.as_secs()), (vec![1, 2, 3, 5], 6));
}

#[test]
fn the_status_says_what_is_missing_and_nothing_of_the_recordings_own_making() {
    let mut player = player(None);
    let status = player.status(true).unwrap();
    assert!(status.contains("40x2, cut"), "{status}");
    assert!(status.ends_with("exec prod/web-0: sh\u{fffd}[2J"), "{status}");
    player.summary.state = State::Cut(3);
    assert!(player.status(false).unwrap().contains("WITHOUT ITS END"));
    player.summary.state = State::Changed { line: 9, proven: 7 };
    assert!(player.status(false).unwrap().contains("CHANGED AFTER LINE 7"));
    let now = Instant::now();
    heed(&mut player, &[Key::Help], now);
    assert!(player.status(false).unwrap().contains("space pause"));
    heed(&mut player, &[Key::Status], now);
    assert_eq!(player.status(false), None);
    assert!(player.heed(Key::Quit, now).is_break());
}

#[rstest]
#[case("2", Ok(Speed(2.0)))]
#[case("0.5", Ok(Speed(0.5)))]
#[case("0", Err(()))]
#[case("-1", Err(()))]
#[case("NaN", Err(()))]
#[case("inf", Err(()))]
#[case("65", Err(()))]
#[case("fast", Err(()))]
fn speeds(#[case] text: &str, #[case] expected: Result<Speed, ()>) {
    assert_eq!(text.parse::<Speed>().map_err(drop), expected);
}

#[rstest]
#[case(0, "0:00.0")]
#[case(61_950, "1:01.9")]
#[case(3_600_000, "1:00:00.0")]
fn clocks(#[case] millis: u64, #[case] expected: &str) {
    assert_eq!(clock(Duration::from_millis(millis)), expected);
}
