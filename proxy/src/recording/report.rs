//! `understudy recordings verify` and `decrypt`: what is to be said of recordings, and what is in them.

use std::{
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
    slice,
};

use super::{
    age::Identity,
    cast::{Ending, Sealing, Verified, VerifyError, read},
    file,
};

/// Says of each recording in a line whether it is what was written, and whether its end is there. True: all are, and have.
///
/// Of a directory it's all that are in it. Those that are sealed are opened, where there are identities.
///
/// # Errors
/// If that can't be said.
pub fn verify_all(paths: &[PathBuf], identities: &[Identity], out: &mut impl Write) -> io::Result<bool> {
    let mut all_whole = true;
    for path in paths {
        match file::find(slice::from_ref(path)) {
            Ok(found) if found.is_empty() => writeln!(out, "{}: no recordings", path.display())?,
            Ok(found) => {
                for path in found {
                    all_whole &= verify(&path, identities, out)?;
                }
            }
            Err((path, error)) => {
                all_whole = false;
                writeln!(out, "{}: {}", path.display(), VerifyError::from(error))?;
            }
        }
    }
    Ok(all_whole)
}

/// True: it is what was written, and its end is there.
fn verify(path: &Path, identities: &[Identity], out: &mut impl Write) -> io::Result<bool> {
    let name = path.display();
    match verified(path, identities) {
        Ok(Verified {
            sums,
            sum,
            ending: Ending::Whole(why),
            sealing,
            ..
        }) => {
            writeln!(out, "{name}: whole, {why}, {} {sum}{}", sums.name(), said(sealing))?;
            return Ok(true);
        }
        Ok(Verified {
            ending: Ending::Missing { unproven },
            sealing,
            ..
        }) => {
            write!(
                out,
                "{name}: as it was written, but without its end: it is being written, its agent was killed, or it was cut{}",
                said(sealing)
            )?;
            match unproven {
                0 => writeln!(out)?,
                bytes => writeln!(out, "; nothing proves the last {bytes} bytes")?,
            }
        }
        Err(error) => writeln!(out, "{name}: {error}")?,
    }
    Ok(false)
}

/// Writes down what was sealed in a recording; of one that wasn't, all of it.
///
/// # Errors
/// If it can't be read or opened, or isn't as it was written: what was written down up to there is all that there is to be
/// had of it.
pub fn decrypt(path: &Path, identities: &[Identity], out: &mut impl Write) -> Result<Verified, VerifyError> {
    let mut out = BufWriter::new(out);
    let verified = read(file::open(path)?, identities, &mut |line| out.write_all(line.bytes()));
    out.flush()?;
    verified
}

fn verified(path: &Path, identities: &[Identity]) -> Result<Verified, VerifyError> {
    read(file::open(path)?, identities, &mut |_| Ok(()))
}

fn said(sealing: Sealing) -> &'static str {
    match sealing {
        Sealing::None => "",
        Sealing::Closed => ", sealed",
        Sealing::Opened => ", opened",
    }
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
            let all_whole = verify_all(&files, &[], &mut out).unwrap();
            (all_whole, String::from_utf8(out).unwrap())
        };
        let (all_whole, said) = say(&["whole"]);
        assert!(
            all_whole && said.ends_with(&format!("whole: whole, closed, blake3 {sum}\n")),
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

        // Of directories, what is called as recordings are.
        fs::create_dir(path("none")).unwrap();
        for (name, bytes) in [("a.cast", &whole), ("b.cast", &head), ("c.partial", &head)] {
            fs::create_dir_all(path("some")).unwrap();
            fs::write(path("some").join(name), bytes).unwrap();
        }
        let (all_whole, said) = say(&["none", "some"]);
        let lines: Vec<_> = said.lines().collect();
        assert!(!all_whole && lines.len() == 3, "{said}");
        assert!(lines[0].ends_with("none: no recordings"), "{said}");
        assert!(lines[1].contains("some/a.cast: whole"), "{said}");
        assert!(
            lines[2].contains("some/b.cast: as it was written, but without its end"),
            "{said}"
        );
    }
}
