//! Kafka, the schema registry and PostgreSQL, fetched once with Maven into a cache that every
//! project shares. Each file is checked against `artifacts.sha256`. A complete artifact is never
//! fetched again. An interrupted fetch does not count as complete.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};

use crate::artifacts::java::{find_java, java_options};
use crate::directories::{cache_directory, create_public_directory, lock_file};
use crate::environment::{path, variable};
use crate::processes::{LaunchCommand, variables};

pub(crate) mod java;
pub(crate) mod maven_project;

/// The versions are in the Maven file, where tools that propose updates find them.
const POM: &str = include_str!("../../pom.xml");
const CHECKSUMS: &str = include_str!("../../artifacts.sha256");
const FETCH_TIMEOUT: Duration = Duration::from_secs(900);

/// The directories of the artifacts, all of them complete.
#[derive(Clone, Debug)]
pub struct Artifacts {
    cache: PathBuf,
    /// Kafka's jars, joined in a fixed order: a class archive is valid for that order only.
    pub(crate) kafka_classpath: String,
    pub(crate) registry_jar: PathBuf,
    /// The directory of PostgreSQL's programs: that of `POSTGRES_BIN`, if it is set.
    pub postgres_bin: PathBuf,
}

impl Artifacts {
    /// Fetches the missing artifacts. `progress` gets one line for each long step.
    ///
    /// # Errors
    /// If this is not Linux on x86-64, there is no Java, Maven cannot fetch an artifact, or a file
    /// does not match its checksum.
    pub async fn fetch_missing(progress: &impl Fn(&str)) -> Result<Self> {
        ensure!(
            cfg!(all(target_os = "linux", target_arch = "x86_64")),
            "the native stack runs on Linux x86-64; elsewhere use `docker compose up`"
        );
        let cache = cache_directory()?;
        fetch_all_missing(&ARTIFACTS, &cache, progress).await?;
        let registry = ARTIFACTS[1].directory(&cache);
        let runner = list_files(&registry)?.into_iter().find(|path| path.ends_with("-runner.jar"));
        Ok(Self {
            kafka_classpath: ARTIFACTS[0].classpath(&cache)?,
            registry_jar: runner.context("the registry has no runner jar")?.into(),
            postgres_bin: match path("POSTGRES_BIN") {
                Some(directory) => std::path::absolute(directory)?,
                None => ARTIFACTS[2].directory(&cache).join("bin"),
            },
            cache,
        })
    }

    /// The archive of preloaded classes for what Java runs with the options of a program. Another build of Java
    /// would ignore the archive silently, so the build is part of its name.
    pub(crate) fn class_archive(&self, program: &str) -> Result<PathBuf> {
        let (java, options) = (find_java()?, java_options(program).join(" "));
        let release = java.ancestors().nth(2).map(|home| home.join("release"));
        let release = release.and_then(|file| fs::read_to_string(file).ok()).unwrap_or_default();
        let mut hash = Sha256::new();
        let java = java.display().to_string();
        let registry = self.registry_jar.display().to_string();
        for word in [&java, &release, &self.kafka_classpath, &registry, &options] {
            hash.update(word);
            hash.update([0]);
        }
        let key = hex::encode(&hash.finalize()[..8]);
        Ok(self.cache.join("class-archives").join(format!("{program}-{key}.jsa")))
    }

    /// The option with which a program of Java uses its archive of preloaded classes, which halves its start time, or
    /// writes a new one when it ends.
    pub(crate) fn class_archive_option(
        &self,
        program: &str,
        is_new: bool,
    ) -> Result<Option<String>> {
        let archive = self.class_archive(program)?;
        if is_new {
            let fresh = archive.with_extension("new");
            return Ok(Some(format!("-XX:ArchiveClassesAtExit={}", fresh.display())));
        }
        Ok(archive.exists().then(|| format!("-XX:SharedArchiveFile={}", archive.display())))
    }
}

/// Fetches what is missing, and prints each long step.
pub(crate) async fn fetched() -> Result<Artifacts> {
    Artifacts::fetch_missing(&|line| eprintln!("{line}")).await
}

/// Titles and versions of all artifacts.
pub fn versions() -> impl Iterator<Item = (&'static str, &'static str)> {
    ARTIFACTS.iter().map(|part| (part.title, part.version()))
}

/// A part of the stack that is fetched as a whole. Its name is that of its profile in the Maven file.
pub(crate) struct Artifact {
    pub name: &'static str,
    pub title: &'static str,
    pub size: &'static str,
    pub unpack: Option<Unpack>,
}

/// The archive inside the download, by the end of its name, and the flags with which `tar` unpacks
/// it.
pub(crate) struct Unpack {
    pub archive: &'static str,
    pub flags: &'static str,
}

const ARTIFACTS: [Artifact; 3] = [
    Artifact { name: "kafka", title: "Kafka", size: "41 MB", unpack: None },
    Artifact {
        name: "registry",
        title: "Apicurio Registry",
        size: "109 MB",
        unpack: Some(Unpack { archive: ".tar.gz", flags: "-xzf" }),
    },
    Artifact {
        name: "postgres",
        title: "PostgreSQL",
        size: "15 MB",
        unpack: Some(Unpack { archive: ".txz", flags: "-xJf" }),
    },
];

impl Artifact {
    fn version(&self) -> &'static str {
        let tag = format!("<{}.version>", self.name);
        let rest = POM.split_once(tag.as_str()).map_or("", |(_, rest)| rest);
        rest.split('<').next().unwrap_or_default()
    }

    pub fn directory(&self, cache: &Path) -> PathBuf {
        cache.join(format!("{}-{}", self.name, self.version()))
    }

    /// Its jars, in a fixed order.
    pub fn classpath(&self, cache: &Path) -> Result<String> {
        let files = list_files(&self.directory(cache))?.into_iter();
        let mut jars: Vec<String> = files.filter(|path| path.ends_with(".jar")).collect();
        jars.sort();
        Ok(jars.join(":"))
    }

    /// File name and checksum of every file.
    fn checksums(&self) -> BTreeMap<String, String> {
        let lines = CHECKSUMS.lines().filter_map(|line| line.split_once("  "));
        lines
            .filter_map(|(sum, path)| Some((path.split_once('/')?, sum)))
            .filter(|((part, _), _)| *part == self.name)
            .map(|((_, file), sum)| (file.to_string(), sum.to_string()))
            .collect()
    }

    /// The stamp contains the checksums, so a changed list fetches again even if the version is the
    /// same.
    fn is_complete(&self, cache: &Path) -> bool {
        let stamp = fs::read_to_string(self.directory(cache).join("complete"));
        stamp.is_ok_and(|stamp| stamp == format!("{:?}", self.checksums()))
    }

    async fn fetch(&self, cache: &Path, work: &Path, progress: &impl Fn(&str)) -> Result<()> {
        let begun = Instant::now();
        progress(&format!("fetching {} {} ({}) …", self.title, self.version(), self.size));
        let into = work.join(self.name);
        let fetched = into.join("fetched");
        self.run_maven(work, &into).await?;
        self.verify_checksums(&fetched)?;

        let ready = if let Some(unpack) = &self.unpack {
            let ready = into.join("ready");
            fs::create_dir_all(&ready)?;
            let mut candidates = list_files(&fetched)?;
            candidates.extend(list_files(&into.join("unpacked")).unwrap_or_default());
            let archive = candidates.into_iter().find(|path| path.ends_with(unpack.archive));
            let archive = archive.with_context(|| format!("no {} was fetched", unpack.archive))?;
            let into = ready.display().to_string();
            let arguments = ["--no-same-owner", unpack.flags, &archive, "-C", &into];
            let (tar, log) = (LaunchCommand::new("tar", arguments), work.join("run.log"));
            let unpacked = tar.run(work, &log, FETCH_TIMEOUT).await?;
            let failure = fs::read_to_string(&log).unwrap_or_default();
            ensure!(unpacked, "cannot unpack: {}", failure.trim());
            ready
        } else {
            fetched
        };
        fs::write(ready.join("complete"), format!("{:?}", self.checksums()))?;
        fs::set_permissions(&ready, fs::Permissions::from_mode(0o755))?;
        let home = self.directory(cache);
        if home.exists() {
            fs::remove_dir_all(&home)?;
        }
        fs::rename(&ready, &home)?;
        progress(&format!("fetched {} in {:.0} s", self.title, begun.elapsed().as_secs_f64()));
        Ok(())
    }

    async fn run_maven(&self, work: &Path, into: &Path) -> Result<()> {
        let pom = work.join("pom.xml");
        fs::write(&pom, POM)?;
        // A temporary repository, deleted afterwards: the user's own is not changed.
        let repository = format!("-Dmaven.repo.local={}", work.join("repository").display());
        let users = variable("MAVEN_OPTS").unwrap_or_default();
        let (pom, into) = (pom.display().to_string(), format!("-Dinto={}", into.display()));
        let arguments = ["-B", "-U", "-e", "-C", "-f", &pom, "-P", self.name, &into, "package"];
        let mut maven = LaunchCommand::new("mvn", arguments);
        maven.environment = variables([("MAVEN_OPTS", format!("{users} {repository}"))]);
        let log = work.join(format!("{}.log", self.name));
        // Two attempts, since one broken connection is no reason to fail.
        for _ in 0..2 {
            if maven.run(work, &log, FETCH_TIMEOUT).await? {
                return Ok(());
            }
        }
        let text = fs::read_to_string(&log).unwrap_or_default();
        let reason =
            text.lines().find(|line| line.contains("[ERROR]")).unwrap_or("Maven printed no error");
        bail!("Maven could not fetch {} {}: {reason}", self.title, self.version())
    }

    fn verify_checksums(&self, fetched: &Path) -> Result<()> {
        let expected = self.checksums();
        let mut found = BTreeMap::new();
        for path in list_files(fetched)? {
            let name = Path::new(&path).file_name().unwrap_or_default();
            found.insert(name.to_string_lossy().into_owned(), sha256(Path::new(&path))?);
        }
        for (file, sum) in &expected {
            match found.get(file) {
                None => bail!("{file} of {} was not fetched", self.title),
                Some(found) if found != sum => {
                    bail!("{file} does not match artifacts.sha256: its sha256 is {found}")
                }
                Some(_) => (),
            }
        }
        if let Some(file) = found.keys().find(|file| !expected.contains_key(*file)) {
            bail!("{file} was fetched with {}, and artifacts.sha256 does not list it", self.title);
        }
        Ok(())
    }
}

/// Fetches those of these artifacts that the cache lacks.
pub(crate) async fn fetch_all_missing(
    artifacts: &[Artifact],
    cache: &Path,
    progress: &impl Fn(&str),
) -> Result<()> {
    if artifacts.iter().all(|part| part.is_complete(cache)) {
        return Ok(());
    }
    create_public_directory(cache).with_context(|| {
        format!("cannot create the cache {} (HOLDFAST_CACHE moves it)", cache.display())
    })?;
    let _lock = lock_file(&cache.join("lock"), &|| {
        progress("waiting for another launcher to finish its download …")
    })
    .await?;
    // Under the lock no other launcher fetches, so these files are left from an interrupted fetch.
    let work = cache.join("partial");
    let _ = fs::remove_dir_all(&work);
    fs::create_dir_all(&work)?;
    for part in artifacts {
        if !part.is_complete(cache) {
            part.fetch(cache, &work, progress).await?;
        }
    }
    fs::remove_dir_all(&work)?;
    Ok(())
}

fn list_files(directory: &Path) -> Result<Vec<String>> {
    let entries = fs::read_dir(directory).with_context(|| format!("no {}", directory.display()))?;
    entries.map(|entry| Ok(entry?.path().display().to_string())).collect()
}

fn sha256(path: &Path) -> Result<String> {
    let mut hash = Sha256::new();
    io::copy(&mut File::open(path)?, &mut hash)?;
    Ok(hex::encode(hash.finalize()))
}
