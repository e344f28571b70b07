//! What rage wrote is read, what is written here is read again, and whatever is done to it shows.

use base64::engine::general_purpose::STANDARD;
use proptest::{prelude::*, sample::Index};
use rstest::rstest;

use super::*;

/// Made by rage 1.x (`pyrage`), as is what follows.
const IDENTITY: &str = "AGE-SECRET-KEY-14TY9V30FVZJGF36DQUTX9L7CW9U2HJNARVL3HS4S6JHVG6DTXM2SK3444S";
const RECIPIENT: &str = "age14vqqauf09tdf2p0ykj8z3czwglqw4svrm5c7qzv5026kxfdw34hqgx6u65";
const OTHER: &str = "age12449tfv4tr935dxj2ewu6fyz4kegqujtggtq554045f73s2u4v8sjfqlsa";
/// The bytes from 0 to 31, for the other and for this one, with a stanza of a kind that nobody knows.
const WRITTEN: &str = "YWdlLWVuY3J5cHRpb24ub3JnL3YxCi0+IFgyNTUxOSBaL3JQV1VhSngyUGdGQm9kclA5MXZUcUU0UU5IUmVpYnRkbk9H\
MnJkMXlJClpkemFjZFZrajZLdHJQV2xzSVFFN0lFSTF5VkpHRER5Nm9USWdka1JFV00KLT4gWDI1NTE5IHRlaXpvaDBIbStzd0MxeDhpajhMSFR4RGRT\
bkg5Vi9SV3JWb3phK2h0VGsKODBNSDhFY2N5d2pubVF1c3B0K2MyVHJPcG1XWUZEQ1lTODZwMzBQcVUwVQotPiA5WFkkYWstZ3JlYXNlIDNLdmQsJ2A5\
IHN2IU5RLVggTHB2cWNVIHBWe1ZySSNpCnVtb0Q4Vm90aFc4cEpSMVlEdllLRlBwSzVtbnoxSm8yN3V6US9QWk94eDZub2dtUGJhOXFxbGsxa2RzNkxX\
dTEKN05oYjJXb1FQOHRRdlp3WHRRCi0tLSBodFVvdnoza3U3czI1aXZKTzdpZWFoMEMzckluY3c1YTF2akxtZkZzV0ZJCrYQox8mn4pyLkHfW0WX28Xb\
lRn1xISD/m0iMsmoAVb8q41AmcsAjchbLDwwRAICB0dH+KBhKd3dbFHDIZXepyI=";

fn written() -> Vec<u8> {
    STANDARD.decode(WRITTEN).unwrap()
}

fn generated() -> (Identity, Recipient) {
    let secret = Arc::new(PrivateKey::generate(&X25519).unwrap());
    let public = secret.compute_public_key().unwrap().as_ref().try_into().unwrap();
    (Identity { secret, public }, Recipient(public))
}

#[test]
fn what_another_program_wrote_is_read() {
    let identity = Identity::parse(IDENTITY).unwrap();
    assert_eq!(Recipient(identity.public).to_string(), RECIPIENT);
    let key = key_in(&written(), &[generated().0, identity]).unwrap();
    assert!(key.expose_secret().iter().copied().eq(0..32));
}

#[test]
fn each_recipient_can_read_a_key_and_nobody_else() {
    let [(one, a), (two, b), (stranger, _)] = [(); 3].map(|()| generated());
    let (key, file) = new_key(&[a, b]).unwrap();
    for identity in [one, two] {
        let read = key_in(&file, &[identity]).unwrap();
        assert_eq!(read.expose_secret(), key.expose_secret());
    }
    assert!(matches!(key_in(&file, &[stranger]), Err(AgeError::NotFor)));
    assert!(matches!(key_in(&file, &[]), Err(AgeError::NotFor)));
}

#[rstest]
#[case::this(RECIPIENT, true)]
#[case::other(OTHER, true)]
#[case::upper(&RECIPIENT.to_uppercase(), true)]
#[case::an_identity(IDENTITY, false)]
#[case::a_typing_mistake(&RECIPIENT.replace("age14v", "age14w"), false)]
#[case::short(&RECIPIENT[..50], false)]
#[case::of_another_kind("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI", false)]
#[case::nothing("", false)]
fn recipients_are_read_as_they_are_written(#[case] text: &str, #[case] is_one: bool) {
    match text.parse::<Recipient>() {
        Ok(recipient) => assert!(is_one && recipient.to_string() == text.to_lowercase()),
        Err(error) => assert!(!is_one && error.to_string().contains("age-keygen")),
    }
}

#[test]
fn identities_are_read_from_a_file() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("key.txt");
    let read = |text: &str| {
        fs::write(&file, text).unwrap();
        Identity::read(&file).map(|identities| identities.len())
    };
    let made = format!("# created: 2026-11-22T19:00:00Z\n# public key: {RECIPIENT}\n{IDENTITY}\n\n");
    assert_eq!(read(&made).unwrap(), 1);
    for text in ["", "# nothing\n", RECIPIENT, &format!("{IDENTITY}\nmore\n")] {
        let error = read(text).unwrap_err();
        assert!(matches!(error, AgeError::Identity(_)), "{text}: {error}");
    }
    let missing = Identity::read(&directory.path().join("missing")).unwrap_err();
    assert!(matches!(missing, AgeError::Read { .. }), "{missing}");
    // And what is read is never shown.
    assert!(!format!("{:?}", Identity::parse(IDENTITY)).contains("4TY9"));
}

proptest! {
    #[test]
    fn whatever_is_changed_or_cut_gives_no_other_key(at in any::<Index>(), byte in any::<u8>(), cuts in any::<bool>()) {
        let mut file = written();
        let at = at.index(file.len());
        prop_assume!(cuts || file[at] != byte);
        file[at] = byte;
        if cuts {
            file.truncate(at);
        }
        let identity = Identity::parse(IDENTITY).unwrap();
        prop_assert!(key_in(&file, &[identity]).is_err());
    }
}
