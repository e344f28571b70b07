//! An image as a tar that every engine reads: the OCI image layout, and Docker's own manifest naming the same blobs.
//!
//! The same input makes the same bytes: entries are sorted, every time is the one that was given, and nothing comes
//! from this machine.
//!
//! Sources: the OCI image specification 1.1 (image-layout.md, manifest.md, config.md) and Docker's image
//! specification 1.2 for `manifest.json`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write;

use anyhow::{Context, Result, bail};
use flate2::{Compression, GzBuilder};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tar::{EntryType, Header};

use super::reference::Reference;

/// The agent's place in the image.
const ENTRYPOINT: &str = "/understudy";

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// An image of one executable.
#[derive(Debug)]
pub(crate) struct Image<'a> {
    /// Its name.
    pub(crate) reference: &'a Reference,
    /// The static executable that is all it holds.
    pub(crate) executable: &'a [u8],
    /// What it runs on.
    pub(crate) platform: Platform,
    /// The time that everything in it bears, seconds since 1970.
    pub(crate) created: u64,
    /// What it says of itself.
    pub(crate) labels: BTreeMap<&'static str, String>,
}

/// A machine's kind, by the names that Go has for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Platform {
    /// `linux/amd64`.
    Amd64,
    /// `linux/arm64/v8`.
    Arm64,
}

impl Platform {
    /// The platform of what Rust names so.
    ///
    /// # Errors
    /// Where nobody has said what images call it.
    pub(crate) fn of(arch: &str) -> Result<Self> {
        match arch {
            "x86_64" => Ok(Self::Amd64),
            "aarch64" => Ok(Self::Arm64),
            other => bail!("images are made on x86_64 and aarch64, and this is {other}"),
        }
    }

    fn describe(self) -> Value {
        match self {
            Self::Amd64 => json!({"architecture": "amd64", "os": "linux"}),
            Self::Arm64 => json!({"architecture": "arm64", "os": "linux", "variant": "v8"}),
        }
    }
}

/// Content and the digest that it goes by.
struct Blob {
    media_type: &'static str,
    digest: String,
    content: Vec<u8>,
}

impl Blob {
    fn new(media_type: &'static str, content: Vec<u8>) -> Self {
        Self {
            media_type,
            digest: digest(&content),
            content,
        }
    }

    /// Where it is in the layout.
    fn path(&self) -> String {
        format!("blobs/{}", self.digest.replace(':', "/"))
    }

    fn descriptor(&self) -> Value {
        json!({"mediaType": self.media_type, "digest": self.digest, "size": self.content.len()})
    }
}

/// Writes the image, and returns the digest of its manifest.
///
/// # Errors
/// Where `output` doesn't take it.
pub(crate) fn write(image: &Image<'_>, output: impl Write) -> Result<String> {
    let files = layer(image)?;
    let diff_id = digest(&files);
    let layer = Blob::new(LAYER, compress(&files)?);
    let config = Blob::new(CONFIG, serde_json::to_vec(&config(image, &diff_id)?)?);
    let manifest = Blob::new(MANIFEST, serde_json::to_vec(&manifest(image, &config, &layer))?);

    let index = index(image, &manifest);
    let docker = json!([{
        "Config": config.path(),
        "RepoTags": [image.reference.to_string()],
        "Layers": [layer.path()],
    }]);
    let mut entries = BTreeMap::from([
        ("index.json".to_owned(), serde_json::to_vec(&index)?),
        ("manifest.json".to_owned(), serde_json::to_vec(&docker)?),
        (
            "oci-layout".to_owned(),
            serde_json::to_vec(&json!({"imageLayoutVersion": "1.0.0"}))?,
        ),
    ]);
    let digest = manifest.digest.clone();
    for blob in [layer, config, manifest] {
        entries.insert(blob.path(), blob.content);
    }

    let mut archive = tar::Builder::new(output);
    for directory in ["blobs/", "blobs/sha256/"] {
        append(&mut archive, directory, EntryType::Directory, 0o755, image.created, &[])?;
    }
    for (path, content) in &entries {
        append(&mut archive, path, EntryType::Regular, 0o644, image.created, content)?;
    }
    archive.into_inner()?.flush()?;
    Ok(digest)
}

/// The image's one layer: the executable, which anyone may run, for the agent is root and the gate is not.
fn layer(image: &Image<'_>) -> Result<Vec<u8>> {
    let mut files = tar::Builder::new(Vec::new());
    let path = ENTRYPOINT.trim_start_matches('/');
    append(
        &mut files,
        path,
        EntryType::Regular,
        0o755,
        image.created,
        image.executable,
    )?;
    Ok(files.into_inner()?)
}

fn append<W: Write>(
    archive: &mut tar::Builder<W>,
    path: &str,
    kind: EntryType,
    mode: u32,
    modified: u64,
    content: &[u8],
) -> Result<()> {
    let mut header = Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(modified);
    header.set_size(content.len().try_into()?);
    archive
        .append_data(&mut header, path, content)
        .with_context(|| format!("could not write {path}"))
}

fn compress(content: &[u8]) -> Result<Vec<u8>> {
    // No name and no time of its own; 255 is "unknown" among the systems that may have made it (RFC 1952).
    let mut gzip = GzBuilder::new()
        .mtime(0)
        .operating_system(255)
        .write(Vec::new(), Compression::best());
    gzip.write_all(content)?;
    Ok(gzip.finish()?)
}

fn config(image: &Image<'_>, diff_id: &str) -> Result<Value> {
    let created = jiff::Timestamp::from_second(image.created.try_into()?)
        .context("SOURCE_DATE_EPOCH is past all time")?
        .to_string();
    let mut config = image.platform.describe();
    config["created"] = json!(created);
    config["config"] = json!({
        "User": "0",
        "Entrypoint": [ENTRYPOINT],
        "WorkingDir": "/",
        "Labels": image.labels,
    });
    config["rootfs"] = json!({"type": "layers", "diff_ids": [diff_id]});
    config["history"] = json!([{"created": created, "created_by": "cargo xtask image"}]);
    Ok(config)
}

fn manifest(image: &Image<'_>, config: &Blob, layer: &Blob) -> Value {
    json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": config.descriptor(),
        "layers": [layer.descriptor()],
        "annotations": image.labels,
    })
}

fn index(image: &Image<'_>, manifest: &Blob) -> Value {
    let mut descriptor = manifest.descriptor();
    descriptor["platform"] = image.platform.describe();
    // The first is containerd's own name for the whole name, the second the specification's for the tag.
    descriptor["annotations"] = json!({
        "io.containerd.image.name": image.reference.canonical(),
        "org.opencontainers.image.ref.name": image.reference.tag(),
    });
    json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [descriptor],
    })
}

fn digest(content: &[u8]) -> String {
    Sha256::digest(content)
        .iter()
        .fold("sha256:".to_owned(), |mut digest, byte| {
            // Writing to a string can't fail.
            let _ = write!(digest, "{byte:02x}");
            digest
        })
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use flate2::read::GzDecoder;

    use super::*;

    const STAND_IN: &[u8] = b"\x7fELF, as far as an archive is concerned";

    fn written(created: u64) -> (String, Vec<u8>) {
        let reference = "registry.example/team/understudy:0.1.0".parse().unwrap();
        let image = Image {
            reference: &reference,
            executable: STAND_IN,
            platform: Platform::Amd64,
            created,
            labels: BTreeMap::from([("org.opencontainers.image.version", "0.1.0".to_owned())]),
        };
        let mut archive = Vec::new();
        let digest = write(&image, &mut archive).unwrap();
        (digest, archive)
    }

    /// Every regular file of a tar, with its header.
    fn files(archive: &[u8]) -> BTreeMap<String, (Header, Vec<u8>)> {
        let mut files = BTreeMap::new();
        let mut names = Vec::new();
        for entry in tar::Archive::new(archive).entries().unwrap() {
            let mut entry = entry.unwrap();
            let header = entry.header().clone();
            names.push(entry.path().unwrap().display().to_string());
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            if header.entry_type() == EntryType::Regular {
                files.insert(names[names.len() - 1].clone(), (header, content));
            }
        }
        assert!(names.is_sorted(), "{names:?}");
        files
    }

    /// What a descriptor points to, once its digest and size have been found true.
    fn follow(files: &BTreeMap<String, (Header, Vec<u8>)>, descriptor: &Value, media_type: &str) -> Vec<u8> {
        assert_eq!(descriptor["mediaType"], media_type);
        let named = descriptor["digest"].as_str().unwrap();
        let (_, content) = &files[&format!("blobs/{}", named.replace(':', "/"))];
        assert_eq!(digest(content), named);
        assert_eq!(descriptor["size"], content.len());
        content.clone()
    }

    fn parse(content: &[u8]) -> Value {
        serde_json::from_slice(content).unwrap()
    }

    #[test]
    fn digests_are_sha256() {
        // FIPS 180-2, appendix B.1.
        assert_eq!(
            digest(b"abc"),
            "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
    }

    #[test]
    fn the_archive_reads_back_as_an_oci_layout() {
        let (named, archive) = written(1_700_000_000);
        let files = files(&archive);
        assert_eq!(parse(&files["oci-layout"].1), json!({"imageLayoutVersion": "1.0.0"}));

        let index = parse(&files["index.json"].1);
        let entry = &index["manifests"][0];
        assert_eq!(entry["digest"], named);
        assert_eq!(entry["platform"], json!({"architecture": "amd64", "os": "linux"}));
        assert_eq!(
            entry["annotations"]["io.containerd.image.name"],
            "registry.example/team/understudy:0.1.0"
        );

        let manifest = parse(&follow(&files, entry, MANIFEST));
        assert_eq!(manifest["schemaVersion"], 2);
        assert_eq!(manifest["layers"].as_array().unwrap().len(), 1);
        let compressed = follow(&files, &manifest["layers"][0], LAYER);
        let config = parse(&follow(&files, &manifest["config"], CONFIG));

        assert_eq!(config["architecture"], "amd64");
        assert_eq!(config["created"], "2023-11-14T22:13:20Z");
        assert_eq!(config["config"]["Entrypoint"], json!(["/understudy"]));
        assert_eq!(config["config"]["User"], "0");
        assert_eq!(config["config"]["Labels"]["org.opencontainers.image.version"], "0.1.0");

        let mut layer = Vec::new();
        GzDecoder::new(&compressed[..]).read_to_end(&mut layer).unwrap();
        assert_eq!(config["rootfs"]["diff_ids"], json!([digest(&layer)]));
        let inside = self::files(&layer);
        assert_eq!(inside.keys().collect::<Vec<_>>(), ["understudy"]);
        let (header, content) = &inside["understudy"];
        assert_eq!(content, STAND_IN);
        assert_eq!(header.mode().unwrap() & 0o7777, 0o755);
        assert_eq!((header.uid().unwrap(), header.gid().unwrap()), (0, 0));
        assert_eq!(header.mtime().unwrap(), 1_700_000_000);
    }

    #[test]
    fn dockers_manifest_names_the_same_blobs() {
        let (_, archive) = written(0);
        let files = files(&archive);
        let docker = parse(&files["manifest.json"].1);
        assert_eq!(docker[0]["RepoTags"], json!(["registry.example/team/understudy:0.1.0"]));
        let manifest = parse(&follow(
            &files,
            &parse(&files["index.json"].1)["manifests"][0],
            MANIFEST,
        ));
        let path = |descriptor: &Value| format!("blobs/{}", descriptor["digest"].as_str().unwrap().replace(':', "/"));
        assert_eq!(docker[0]["Config"], path(&manifest["config"]));
        assert_eq!(docker[0]["Layers"], json!([path(&manifest["layers"][0])]));
    }

    #[test]
    fn the_same_input_makes_the_same_bytes() {
        assert_eq!(written(0), written(0));
        assert_ne!(written(0).0, written(1).0);
        let (_, archive) = written(7);
        for (name, (header, _)) in files(&archive) {
            assert_eq!(header.mtime().unwrap(), 7, "{name}");
        }
    }
}
