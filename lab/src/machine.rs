//! The database part of a machine that is set up by docs/operate/install.md: PostgreSQL as Debian
//! installs it, and roles, files and environment by the commands of the document. Only folders and
//! the port differ.

use std::path::PathBuf;
use std::process::Command;

use crate::cluster::Cluster;
use crate::place::{self, built, free_port};

pub struct Machine {
    cluster: Cluster,
    folder: PathBuf,
    port: u16,
}

impl Machine {
    /// Creates the three roles, the database, its schema and the rights. Needs root.
    pub async fn start() -> Self {
        // Postfix instances use the numbers of `free_port` below 18.
        let port = free_port(18);
        let cluster = Cluster::as_debian_makes_it(port).await;
        let folder = PathBuf::from(place::temporary(&format!("machine-{port}")));
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder).unwrap();
        std::os::unix::fs::symlink(place::file("deploy"), folder.join("deploy")).unwrap();
        let machine = Self { cluster, folder, port };
        // Creates what the Debian package installs.
        std::fs::create_dir_all(machine.etc().join("secrets")).unwrap();
        let settings = machine.folder.join("deploy/vos-auth.env.example");
        std::fs::copy(settings, machine.etc().join("vos-auth.env")).unwrap();
        machine.root_runs(&install("Create the database"));
        let names = "host=platform.verolabs.co sign_in=/login";
        machine.root_runs(&format!("{names}\n{}", install("Write the settings")));
        machine.operator_runs(&install("Create the schema and grant the rights"));
        machine
    }

    /// Runs commands of a document as root, in a shell with an operator's settings. As in a clone,
    /// the current folder contains `deploy`.
    pub fn operator_runs(&self, lines: &str) -> String {
        self.root_runs(&format!("{}{lines}", install("Load an operator's settings")))
    }

    fn root_runs(&self, lines: &str) -> String {
        let lines = lines
            .replace("/etc/vos-auth", &self.etc().display().to_string())
            .replace("@127.0.0.1/", &format!("@127.0.0.1:{}/", self.port));
        let program = built().parent().unwrap();
        let path = format!("{}:{}", program.display(), std::env::var("PATH").unwrap());
        let socket = self.cluster.socket();
        let output = Command::new("bash")
            .args(["-euo", "pipefail", "-c", &lines])
            .current_dir(&self.folder)
            .env_clear()
            .env("PATH", path)
            .env("PGHOST", socket.parent().unwrap())
            .env("PGPORT", self.port.to_string())
            .output()
            .unwrap();
        assert!(output.status.success(), "{lines}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// The file that holds the service's URL.
    pub fn service_url_file(&self) -> String {
        self.etc().join("secrets/database-url").display().to_string()
    }

    /// The owner's URL, for a test's own statements.
    pub fn owner_url(&self) -> String {
        std::fs::read_to_string(self.etc().join("secrets/owner-database-url")).unwrap().trim().to_owned()
    }

    fn etc(&self) -> PathBuf {
        self.folder.join("etc")
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// The first shell block under this heading of docs/operate/install.md.
fn install(heading: &str) -> String {
    let page = place::text("docs/operate/install.md");
    let part = page.split(&format!("\n## {heading}\n")).nth(1).expect("the heading is there");
    let block = part.split("```sh\n").nth(1).expect("a block follows");
    block.split("```").next().unwrap().to_owned()
}
