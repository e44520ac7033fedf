//! The Maven project of a stream processor or of plugins of Kafka Connect: compiled when its sources have changed, and
//! how a stream processor is started.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use sha2::{Digest, Sha256};

use crate::artifacts::java::java;
use crate::directories::lock_file;
use crate::processes::LaunchCommand;

/// What goes into its jar: the sources, and the schemas of the checkout, which the project includes.
const SOURCES: [&str; 2] = ["src/main", "../../schemas"];

const BUILD_TIMEOUT: Duration = Duration::from_secs(900);

/// A compiled project, by its folder and its name.
pub struct MavenProject {
    folder: PathBuf,
    name: String,
}

impl MavenProject {
    /// Compiles it, unless its folder `target` has the result of these sources.
    pub async fn build_missing(root: &Path, name: &str) -> Result<MavenProject> {
        let folder = root.join("services").join(name);
        let project = MavenProject { folder, name: name.to_string() };
        let target = project.folder.join("target");
        fs::create_dir_all(&target)?;
        let _lock = lock_file(&target.join("lock"), &|| {
            eprintln!("waiting for another launcher that compiles {name} …");
        })
        .await?;
        let stamp = project.stamp()?;
        let complete = target.join("complete");
        if !fs::read_to_string(&complete).is_ok_and(|found| found == stamp) {
            let begun = Instant::now();
            eprintln!("compiling {name} with Maven …");
            project.package(&target.join("maven.log")).await?;
            fs::write(complete, stamp)?;
            eprintln!("compiled {name} in {:.0} s", begun.elapsed().as_secs_f64());
        }
        Ok(project)
    }

    /// The folder of its plugins for Kafka Connect.
    pub fn plugins(&self) -> PathBuf {
        self.folder.join("target/plugins")
    }

    /// Changes with everything that goes into the jar.
    fn stamp(&self) -> Result<String> {
        let mut files = vec![self.folder.join("pom.xml")];
        for source in SOURCES {
            collect_files(&self.folder.join(source), &mut files)?;
        }
        files.sort();
        let mut hash = Sha256::new();
        for file in files {
            hash.update(file.display().to_string());
            hash.update([0]);
            hash.update(fs::read(&file)?);
        }
        Ok(hex::encode(hash.finalize()))
    }

    /// Maven's own repository keeps the libraries, as for any other project.
    async fn package(&self, log: &Path) -> Result<()> {
        let maven = LaunchCommand::new("mvn", ["-B", "-e", "-DskipTests", "package"]);
        let _ = fs::remove_file(log);
        let succeeded = maven.run(&self.folder, log, BUILD_TIMEOUT).await.context(
            "Maven cannot be started: `sh e2e/tools.sh streams` installs it with a compiler of Java",
        )?;
        let text = fs::read_to_string(log).unwrap_or_default();
        let errors: Vec<&str> = text.lines().filter(|line| line.contains("[ERROR]")).collect();
        ensure!(succeeded, "Maven could not compile {}: {}", self.name, errors.join("; "));
        Ok(())
    }

    /// The command line of a stream processor. It runs from a copy of the jar, because a later build replaces the jar
    /// while it runs.
    pub fn command(&self, home: &Path) -> Result<LaunchCommand> {
        let target = self.folder.join("target");
        let (jar, own) = (format!("{}.jar", self.name), home.join("program.jar"));
        fs::copy(target.join(jar), &own)?;
        let classpath = format!("{}:{}/*", own.display(), target.join("lib").display());
        let mut command = java(&self.name, home)?;
        command.add(["-cp", &classpath, &format!("{}.Main", self.name)]);
        Ok(command)
    }
}

fn collect_files(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("no {}", folder.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            collect_files(&path, files)?;
        } else {
            files.push(path);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_source_or_schema_is_another_stamp() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        let folder = root.join("services").join("sums");
        fs::create_dir_all(folder.join("src/main/java")).unwrap();
        fs::create_dir_all(root.join("schemas")).unwrap();
        let files = [
            folder.join("pom.xml"),
            folder.join("src/main/java/Main.java"),
            root.join("schemas/a.avsc"),
        ];
        files.iter().for_each(|file| fs::write(file, "before").unwrap());
        let project = MavenProject { folder, name: "sums".to_string() };
        let before = project.stamp().unwrap();
        assert_eq!(project.stamp().unwrap(), before);
        for file in &files {
            fs::write(file, "after").unwrap();
            assert_ne!(project.stamp().unwrap(), before, "{}", file.display());
            fs::write(file, "before").unwrap();
        }
    }
}
