//! What must hold of whatever bytes come in: a function for each place where the agent reads what others wrote, which
//! panics where it doesn't hold. The fuzz targets of `proxy/fuzz` hand it their bytes, and the tests here the kept corpora
//! and changes of them. Built for these two only.
//!
//! What a property compares with is written down anew here, not taken from the module that it judges.

mod answers;
mod asked;
mod certificates;
mod handshake;
mod heads;
mod kernel;
mod pipe;
mod recorded;
mod said;
mod sessions;
mod stream;
mod target;
mod upstream;

/// A property, of any bytes.
pub type Property = fn(&[u8]);

/// Each by the name of its fuzz target and of its corpus.
pub const PROPERTIES: [(&str, Property); 15] = [
    ("request_head", heads::request),
    ("answer_head", heads::answer),
    ("request_stream", stream::holds),
    ("answer_stream", upstream::holds),
    ("request_target", target::holds),
    ("session_file", sessions::file),
    ("session_resource", sessions::resource),
    ("client_hello", handshake::holds),
    ("client_certificate", certificates::holds),
    ("flow_record", kernel::flow),
    ("socket_diag", kernel::diag),
    ("upgrade", pipe::holds),
    ("recorded_stream", recorded::holds),
    ("http2_answers", answers::holds),
    ("http2_requests", asked::holds),
];

/// Holds one of them against some bytes.
///
/// # Panics
/// If it doesn't hold, or there is none of that name.
pub fn hold(name: &str, bytes: &[u8]) {
    let property = PROPERTIES.iter().find(|(known, _)| *known == name);
    assert!(property.is_some(), "no property is named {name}");
    if let Some((_, property)) = property {
        property(bytes);
    }
}

#[cfg(test)]
mod tests {
    use std::{
        collections::BTreeSet,
        fs,
        path::{Path, PathBuf},
    };

    use proptest::{prelude::*, sample::Index};

    use super::*;

    const FUZZ: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz");

    fn names_in(directory: &Path) -> BTreeSet<String> {
        fs::read_dir(directory)
            .unwrap()
            .map(|entry| entry.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned())
            .collect()
    }

    fn corpus(name: &str) -> Vec<(PathBuf, Vec<u8>)> {
        fs::read_dir(Path::new(FUZZ).join("corpus").join(name))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .map(|path| (path.clone(), fs::read(path).unwrap()))
            .collect()
    }

    #[test]
    fn each_has_a_target_and_a_corpus() {
        let names: BTreeSet<String> = PROPERTIES.iter().map(|(name, _)| (*name).to_owned()).collect();
        assert_eq!(names_in(&Path::new(FUZZ).join("fuzz_targets")), names);
        assert_eq!(names_in(&Path::new(FUZZ).join("corpus")), names);
    }

    #[test]
    fn holds_of_the_kept_corpora() {
        for (name, property) in PROPERTIES {
            let corpus = corpus(name);
            assert!(!corpus.is_empty(), "{name} has no corpus");
            for (path, bytes) in corpus {
                // Said where it fails, and captured otherwise.
                println!("{}", path.display());
                property(&bytes);
            }
        }
    }

    /// A change of a seed: some bytes put in the place of others.
    #[derive(Debug, Clone)]
    struct Change {
        at: Index,
        removed: usize,
        put: Vec<u8>,
    }

    impl Change {
        fn apply(&self, bytes: &mut Vec<u8>) {
            let at = self.at.index(bytes.len() + 1);
            let end = (at + self.removed).min(bytes.len());
            bytes.splice(at..end, self.put.iter().copied());
        }
    }

    fn change() -> impl Strategy<Value = Change> {
        let put = prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..6),
            "\\PC{0,8}".prop_map(String::into_bytes),
            prop_oneof![
                Just("\nConnection: authorization\n"),
                Just("\nimpersonate_user: x\n"),
                Just("%2f"),
                Just("%25"),
                Just("\r\n"),
                Just("\0"),
                Just("&a *a"),
            ]
            .prop_map(|text| text.as_bytes().to_vec()),
        ];
        (any::<Index>(), 0..12_usize, put).prop_map(|(at, removed, put)| Change { at, removed, put })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]

        #[test]
        fn holds_of_changed_seeds(
            which in any::<Index>(),
            seed in any::<Index>(),
            changes in proptest::collection::vec(change(), 1..6),
        ) {
            let (name, property) = which.get(&PROPERTIES);
            let mut bytes = seed.get(&corpus(name)).1.clone();
            for change in &changes {
                change.apply(&mut bytes);
            }
            property(&bytes);
        }

        #[test]
        fn holds_of_anything(which in any::<Index>(), bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
            which.get(&PROPERTIES).1(&bytes);
        }
    }
}
