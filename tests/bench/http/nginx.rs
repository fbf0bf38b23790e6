//! nginx beside the server: the plain reverse proxy that processor times are compared to.

use std::{fs, net::SocketAddr, path::Path, process::Command};

use anyhow::Context as _;

use super::{
    process::Running,
    stage::{free_address, wait_until_listening},
};

pub(crate) struct Nginx {
    pub(crate) running: Running,
    pub(crate) address: SocketAddr,
}

/// Starts nginx with everything it writes in `directory`.
pub(crate) fn start(directory: &Path, upstream: SocketAddr) -> anyhow::Result<Nginx> {
    let address = free_address()?;
    let prefix = directory.join("nginx");
    fs::create_dir_all(&prefix)?;
    let file = prefix.join("nginx.conf");
    fs::write(&file, configuration(&prefix, address, upstream))?;
    let mut command = Command::new(program());
    command
        .arg("-p")
        .arg(&prefix)
        .arg("-e")
        .arg(prefix.join("error.log"))
        .arg("-c")
        .arg(&file);
    let running = Running::start(&command)?;
    wait_until_listening(address)
        .with_context(|| "nginx does not listen; is nginx-light installed (make deps)?")?;
    Ok(Nginx { running, address })
}

/// Debian has it where an ordinary user's `PATH` does not look.
fn program() -> &'static str {
    if Path::new("/usr/sbin/nginx").exists() {
        "/usr/sbin/nginx"
    } else {
        "nginx"
    }
}

/// Bodies are kept in memory as here, so that a large prompt costs nginx no file.
fn configuration(prefix: &Path, address: SocketAddr, upstream: SocketAddr) -> String {
    let prefix = prefix.display();
    // Started by root, workers would become `nobody`, who may not enter the directory.
    let user = if rustix::process::geteuid().is_root() {
        "user root;"
    } else {
        ""
    };
    format!(
        "daemon off; {user} worker_processes 2; pid {prefix}/nginx.pid; error_log {prefix}/error.log;
        events {{ worker_connections 4096; }}
        http {{
            access_log off;
            client_body_temp_path {prefix}/body; proxy_temp_path {prefix}/proxy;
            fastcgi_temp_path {prefix}/fastcgi; uwsgi_temp_path {prefix}/uwsgi; scgi_temp_path {prefix}/scgi;
            client_body_buffer_size 256k; client_max_body_size 32m;
            upstream model {{ server {upstream}; keepalive 1024; keepalive_requests 100000000; }}
            server {{
                listen {address};
                keepalive_requests 100000000;
                location / {{
                    proxy_pass http://model;
                    proxy_http_version 1.1;
                    proxy_set_header Connection \"\";
                    proxy_buffering off;
                }}
            }}
        }}
        "
    )
}
