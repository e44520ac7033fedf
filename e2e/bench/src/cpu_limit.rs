//! A limit on the processor time of some processes together, by a control group of Linux. It needs root.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use launcher::proc_fs::ProcessIdentity;

/// The time after which a group may continue that has used up its share: much less than an order takes.
const PERIOD_MICROS: u64 = 10_000;

/// The two interfaces of the kernel.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Version {
    /// A hierarchy for processor time alone.
    One,
    /// One hierarchy for everything.
    Two,
}

/// A group of processes. Their later children belong to it as well.
pub struct CpuLimit {
    root: PathBuf,
    group: PathBuf,
    version: Version,
}

impl CpuLimit {
    /// A new group without processes.
    pub fn create() -> Result<CpuLimit> {
        let mounts = fs::read_to_string("/proc/self/mounts")?;
        let (root, version) =
            find_root(&mounts).context("no control group limits processor time here")?;
        if version == Version::Two {
            fs::write(root.join("cgroup.subtree_control"), "+cpu")?;
        }
        let group = root.join(format!("bench-{}", std::process::id()));
        fs::create_dir(&group).with_context(|| format!("cannot create {}", group.display()))?;
        Ok(CpuLimit { root, group, version })
    }

    /// Adds processes to the group, with all their threads.
    pub fn add(&self, processes: &[ProcessIdentity]) -> Result<()> {
        for process in processes.iter().filter(|process| process.is_alive()) {
            move_to(&self.group, process.pid)?;
        }
        Ok(())
    }

    /// How many processors the processes of the group may use together.
    pub fn set_cores(&self, cores: f64) -> Result<()> {
        let quota = (cores * PERIOD_MICROS as f64) as u64;
        ensure!(quota > 0, "{cores} cores are too few");
        match self.version {
            Version::One => {
                fs::write(self.group.join("cpu.cfs_period_us"), PERIOD_MICROS.to_string())?;
                fs::write(self.group.join("cpu.cfs_quota_us"), quota.to_string())?;
            }
            Version::Two => {
                fs::write(self.group.join("cpu.max"), format!("{quota} {PERIOD_MICROS}"))?;
            }
        }
        Ok(())
    }
}

impl Drop for CpuLimit {
    /// A group can be removed when it is empty. A process may exit meanwhile, so failures are ignored.
    fn drop(&mut self) {
        let members = fs::read_to_string(self.group.join("cgroup.procs")).unwrap_or_default();
        for pid in members.lines().filter_map(|pid| pid.parse().ok()) {
            let _ = move_to(&self.root, pid);
        }
        let _ = fs::remove_dir(&self.group);
    }
}

fn move_to(group: &Path, pid: u32) -> Result<()> {
    let file = group.join("cgroup.procs");
    fs::write(&file, pid.to_string()).with_context(|| format!("{pid} into {}", file.display()))
}

/// The directory of the hierarchy that limits processor time.
fn find_root(mounts: &str) -> Option<(PathBuf, Version)> {
    mounts.lines().find_map(|line| {
        let words: Vec<&str> = line.split(' ').collect();
        let &[_, directory, kind, options, ..] = &words[..] else { return None };
        let directory = PathBuf::from(directory);
        match kind {
            "cgroup" if options.split(',').any(|option| option == "cpu") => {
                Some((directory, Version::One))
            }
            "cgroup2" => {
                let controllers = fs::read_to_string(directory.join("cgroup.controllers")).ok()?;
                let has_cpu = controllers.split_whitespace().any(|it| it == "cpu");
                has_cpu.then_some((directory, Version::Two))
            }
            _ => None,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hierarchy_of_processor_time_is_found_and_no_other() {
        let mounts = "cgroup /sys/fs/cgroup/cpuset cgroup rw,relatime,cpuset 0 0\n\
                      cgroup2 /sys/fs/cgroup/without-controllers cgroup2 rw 0 0\n\
                      cgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,relatime,cpu,cpuacct 0 0\n";
        let (root, version) = find_root(mounts).unwrap();
        assert_eq!(root, Path::new("/sys/fs/cgroup/cpu,cpuacct"));
        assert!(version == Version::One);
        assert!(find_root("cgroup /sys/fs/cgroup/cpuset cgroup rw,cpuset 0 0\n").is_none());
    }
}
