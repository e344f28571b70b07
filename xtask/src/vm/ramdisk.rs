//! The machine's first root: what mounts this system's files and goes over to them.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use super::kernel::Kernel;
use crate::command::{on_path, probe};

/// Said by the machine when it has the system's files, so that whoever waits for it knows that it lives.
pub(crate) const UP: &str = "understudy-vm: up";
/// Said by the machine at its end, before the exit code.
pub(crate) const EXIT: &str = "understudy-vm: exit ";

/// What is needed before modules can be found in the system's files.
const MODULES: [&str; 4] = ["virtio_pci", "9pnet_virtio", "9p", "overlay"];

/// Makes the ramdisk below `work`, which holds nothing else, and says where it is.
///
/// # Errors
/// Where it can't be made.
pub(crate) fn make(kernel: &Kernel, script: &str, work: &Path) -> Result<PathBuf> {
    let root = work.join("root");
    if root.exists() {
        fs::remove_dir_all(&root).with_context(|| format!("could not remove {}", root.display()))?;
    }
    for directory in ["bin", "modules", "host", "memory", "system", "proc", "dev"] {
        fs::create_dir_all(root.join(directory)).context("could not make the ramdisk's directories")?;
    }
    let busybox = on_path("busybox").context("there is no busybox: install busybox-static")?;
    fs::copy(busybox, root.join("bin/busybox")).context("could not copy busybox")?;
    let modules = modules(kernel)?;
    let mut names = Vec::new();
    for (index, module) in modules.iter().enumerate() {
        // Numbered, for they are loaded in this order.
        let name = format!("{index:03}.ko");
        fs::write(root.join("modules").join(&name), plain(module)?).context("could not copy a module")?;
        names.push(name);
    }
    executable(&root.join("init"), &init(kernel))?;
    executable(&root.join("tests"), &stage(script))?;
    pack(&root, &work.join("ramdisk"))
}

/// The first program: it mounts this system's files below memory, and goes over to the second.
fn init(kernel: &Kernel) -> String {
    let modules = kernel.modules.display();
    let release = &kernel.release;
    format!(
        r"#!/bin/busybox sh
busybox mount -t proc proc /proc
busybox mount -t devtmpfs dev /dev
for module in /modules/*; do busybox insmod $module || echo no $module; done
busybox mount -t tmpfs memory /memory
busybox mkdir /memory/changes /memory/work
busybox mount -t 9p -o ro,trans=virtio,version=9p2000.L,cache=loose,msize=512000 system /host &&
busybox mount -t overlay -o lowerdir=/host,upperdir=/memory/changes,workdir=/memory/work system /system || {{
    echo 'the files of the system outside are not to be had'
    busybox poweroff -f
}}
busybox mkdir -p /system/lib/modules/{release} /system/run/understudy-vm
busybox mount --bind '/host{modules}' /system/lib/modules/{release}
busybox cp /tests /system/run/understudy-vm/tests
busybox umount /proc
exec busybox switch_root -c /dev/console /system /run/understudy-vm/tests
"
    )
}

/// The second program: it makes the system what the tests expect of one, runs them, and says what came of it.
fn stage(script: &str) -> String {
    format!(
        r"#!/bin/sh
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts pts /dev/pts
mount -t tmpfs shm /dev/shm
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t bpf bpf /sys/fs/bpf
mount -t tmpfs tmp /tmp
mount -t tmpfs run /run
mkdir -p /run/netns
ulimit -n 65536
if [ -x /sbin/ip ]; then ip link set lo up; else busybox ip link set lo up; fi
echo '{UP}' on Linux $(uname -r)
(
{script}
)
echo '{EXIT}'$?
busybox poweroff -f
"
    )
}

/// The modules' files, each behind those that it needs.
fn modules(kernel: &Kernel) -> Result<Vec<PathBuf>> {
    let index = kernel.modules.join("modules.dep");
    let text = fs::read_to_string(&index).with_context(|| format!("could not read {}", index.display()))?;
    let builtin = fs::read_to_string(kernel.modules.join("modules.builtin")).unwrap_or_default();
    let ordered = order(&text, &builtin, &MODULES)?;
    Ok(ordered.into_iter().map(|path| kernel.modules.join(path)).collect())
}

/// The paths of the wanted modules and of all that they need, as `modules.dep` has them: what a line names behind the
/// colon is needed by what stands before it, the last first.
fn order(index: &str, builtin: &str, wanted: &[&str]) -> Result<Vec<String>> {
    let name = |path: &str| {
        let file = path.rsplit('/').next().unwrap_or(path);
        file.split('.').next().unwrap_or(file).replace('-', "_")
    };
    let mut ordered = Vec::new();
    let mut seen = BTreeSet::new();
    for wanted in wanted {
        let line = index.lines().find(|line| {
            line.split_once(':')
                .is_some_and(|(path, _)| name(path) == wanted.replace('-', "_"))
        });
        let Some((path, needs)) = line.and_then(|line| line.split_once(':')) else {
            if builtin.lines().any(|path| name(path) == wanted.replace('-', "_")) {
                continue;
            }
            bail!("the kernel has no module {wanted}");
        };
        for path in needs.split_whitespace().rev().chain([path]) {
            if seen.insert(path.to_owned()) {
                ordered.push(path.to_owned());
            }
        }
    }
    Ok(ordered)
}

/// A module's content, unpacked where the package has it compressed.
fn plain(module: &Path) -> Result<Vec<u8>> {
    let content = fs::read(module).with_context(|| format!("could not read {}", module.display()))?;
    if module.extension().is_none_or(|extension| extension != "xz") {
        return Ok(content);
    }
    let output = Command::new("xz")
        .args(["--decompress", "--stdout"])
        .arg(module)
        .output()
        .context("could not start xz: install xz-utils")?;
    ensure!(output.status.success(), "xz can't unpack {}", module.display());
    Ok(output.stdout)
}

fn executable(path: &Path, content: &str) -> Result<()> {
    fs::write(path, content).with_context(|| format!("could not write {}", path.display()))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))
        .with_context(|| format!("could not make {} executable", path.display()))
}

/// Packs a directory as the kernel unpacks it.
fn pack(root: &Path, ramdisk: &Path) -> Result<PathBuf> {
    let list = probe(Command::new("find").current_dir(root).arg(".")).context("could not list the ramdisk")?;
    let archive = fs::File::create(ramdisk).with_context(|| format!("could not write {}", ramdisk.display()))?;
    let mut cpio = Command::new("busybox")
        .args(["cpio", "-o", "-H", "newc"])
        .current_dir(root)
        .stdin(Stdio::piped())
        .stdout(archive)
        .stderr(Stdio::null())
        .spawn()
        .context("could not start busybox")?;
    cpio.stdin
        .take()
        .context("busybox has no standard input")?
        .write_all(list.as_bytes())
        .context("could not pack the ramdisk")?;
    ensure!(cpio.wait()?.success(), "could not pack {}", ramdisk.display());
    Ok(ramdisk.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_comes_behind_what_it_needs() {
        let index = "kernel/a/virtio_pci.ko.xz: kernel/a/modern.ko.xz kernel/a/virtio_ring.ko.xz kernel/a/virtio.ko.xz\n\
                     kernel/b/9pnet-virtio.ko: kernel/b/9pnet.ko kernel/a/virtio.ko.xz\n\
                     kernel/a/virtio.ko.xz:\n";
        let ordered = order(
            index,
            "kernel/fs/overlay.ko\n",
            &["virtio_pci", "overlay", "9pnet_virtio"],
        )
        .unwrap();
        assert_eq!(
            ordered,
            [
                "kernel/a/virtio.ko.xz",
                "kernel/a/virtio_ring.ko.xz",
                "kernel/a/modern.ko.xz",
                "kernel/a/virtio_pci.ko.xz",
                "kernel/b/9pnet.ko",
                "kernel/b/9pnet-virtio.ko",
            ]
        );
        assert!(order(index, "", &["overlay"]).is_err());
    }
}
