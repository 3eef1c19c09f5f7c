//! Certificates for servers that tests run: `cert.pem` and `key.pem`, signed by their own
//! authority, `ca.pem`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Makes `cert.pem`, `key.pem` and `ca.pem` in a folder, for a server called `name`.
pub fn make(folder: &Path, name: &str) {
    let script = "set -e
        openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj '/CN=Test CA' \
            -keyout ca.key -out ca.pem
        openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=server -keyout key.pem -out request.pem
        openssl x509 -req -in request.pem -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -out cert.pem \
            -extfile <(printf 'subjectAltName=DNS:%s' \"$0\")";
    let made = Command::new("bash").args(["-c", script, name]).current_dir(folder).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
}

/// Makes `NAME.pem` and `NAME.key` in a folder, signed by the authority of [`make`], for a client
/// with this common name and, unless it is empty, this URI.
pub fn make_client(folder: &Path, name: &str, uri: &str) {
    let script = "set -e
        openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj \"/CN=$0\" -keyout \"$0.key\" -out client.csr
        { echo basicConstraints=CA:FALSE; echo extendedKeyUsage=clientAuth; [ -z \"$1\" ] || echo \"subjectAltName=URI:$1\"; } >client.ext
        openssl x509 -req -in client.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -out \"$0.pem\" -extfile client.ext";
    let made = Command::new("bash").args(["-c", script, name, uri]).current_dir(folder).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
}

/// The next certificate of a server, by another authority. The server does not use it yet.
pub struct Next {
    folder: PathBuf,
    /// The path of a file with the authority of this certificate alone. The file at `both` also
    /// contains the authority of the current certificate.
    pub ca: String,
    pub both: String,
}

impl Next {
    /// Makes the certificate that replaces the one in this folder later.
    pub fn after(current: &Path) -> Self {
        let folder = current.join("next");
        fs::create_dir(&folder).unwrap();
        make(&folder, "localhost");
        let (ca, both) = (folder.join("ca.pem"), folder.join("both.pem"));
        let authorities = [current.join("ca.pem"), ca.clone()].map(|file| fs::read(file).unwrap());
        fs::write(&both, authorities.concat()).unwrap();
        Self { folder, ca: ca.display().to_string(), both: both.display().to_string() }
    }

    /// Replaces the current certificate. The files keep their owner.
    pub fn replaces(&self, current: &Path) {
        for file in ["key.pem", "cert.pem"] {
            fs::copy(self.folder.join(file), current.join(file)).unwrap();
        }
    }
}
