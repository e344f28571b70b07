//! `understudy recordings verify`: what is to be said of recordings.

use std::{
    io::{self, Write},
    path::{Path, PathBuf},
};

use super::{
    cast::{Ending, Verified, VerifyError, verify},
    file,
};

/// Says of each recording in a line whether it is what was written, and whether its end is there. True: all are, and have.
///
/// # Errors
/// If that can't be said.
pub fn verify_all(files: &[PathBuf], out: &mut impl Write) -> io::Result<bool> {
    let mut all_whole = true;
    for path in files {
        let name = path.display();
        match verified(path) {
            Ok(Verified {
                sum,
                ending: Ending::Whole(why),
                ..
            }) => writeln!(out, "{name}: whole, {why}, sha256 {sum}")?,
            Ok(Verified {
                ending: Ending::Missing { unproven },
                ..
            }) => {
                all_whole = false;
                write!(
                    out,
                    "{name}: as it was written, but without its end: it is being written, its agent was killed, or it was cut"
                )?;
                match unproven {
                    0 => writeln!(out)?,
                    bytes => writeln!(out, "; nothing proves the last {bytes} bytes")?,
                }
            }
            Err(error) => {
                all_whole = false;
                writeln!(out, "{name}: {error}")?;
            }
        }
    }
    Ok(all_whole)
}

fn verified(path: &Path) -> Result<Verified, VerifyError> {
    verify(file::open(path)?)
}

#[cfg(test)]
mod tests {
    use std::{fs, time::Duration};

    use super::*;
    use crate::recording::{
        about::About,
        cast::{Cast, End},
    };

    #[test]
    fn each_is_said_how_it_stands() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let mut begun = Vec::new();
        let mut cast = Cast::begin(&mut begun, &About::default(), jiff::Timestamp::UNIX_EPOCH).unwrap();
        let (sum, _) = cast.end(Duration::ZERO, End::Closed).unwrap();
        let whole = begun;
        let head = whole.split_inclusive(|byte| *byte == b'\n').next().unwrap().to_vec();
        let changed = String::from_utf8(whole.clone()).unwrap().replace("closed", "cloned");
        fs::write(path("whole"), &whole).unwrap();
        fs::write(path("cut"), &head).unwrap();
        fs::write(path("changed"), changed).unwrap();
        let say = |names: &[&str]| {
            let files: Vec<_> = names.iter().map(|name| path(name)).collect();
            let mut out = Vec::new();
            let all_whole = verify_all(&files, &mut out).unwrap();
            (all_whole, String::from_utf8(out).unwrap())
        };
        let (all_whole, said) = say(&["whole"]);
        assert!(
            all_whole && said.ends_with(&format!("whole: whole, closed, sha256 {sum}\n")),
            "{said}"
        );
        let (all_whole, said) = say(&["whole", "cut", "changed", "missing"]);
        let lines: Vec<_> = said.lines().collect();
        assert!(!all_whole && lines.len() == 4, "{said}");
        assert!(
            lines[1].ends_with(&format!("nothing proves the last {} bytes", head.len())),
            "{said}"
        );
        assert!(
            lines[2].contains("changed at line 4 or before it, after line 2"),
            "{said}"
        );
        assert!(lines[3].contains("can't be read"), "{said}");
    }
}
