//! The exporter: its metrics, its limits, and the files of `doc/monitoring`.

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::time::{interval, timeout};

use crate::harness::*;

/// The number of connections that the exporter serves at a time.
const MAX_CONNECTIONS: usize = 32;
/// The time that a client has for its request.
const IDLE_LIMIT: Duration = Duration::from_secs(2);

const RULES: &str = "doc/monitoring/vcpud.rules.yml";
const DASHBOARD: &str = "doc/monitoring/vcpud.dashboard.json";

/// Returns the path of a file of the project.
fn path(file: &str) -> String {
    format!("{}/{file}", env!("CARGO_MANIFEST_DIR"))
}

/// A Prometheus of Debian that scrapes the exporter each second.
struct Prometheus {
    process: Process,
    address: SocketAddr,
}

impl Prometheus {
    async fn start(directory: &Path, target: SocketAddr) -> Self {
        // JSON is YAML.
        let config = json!({
            "global": {"scrape_interval": "1s"},
            "rule_files": [path(RULES)],
            "scrape_configs": [{
                "job_name": "vcpud",
                "static_configs": [{"targets": [target.to_string()]}],
            }],
        });
        let file = directory.join("prometheus.yml");
        fs::write(&file, config.to_string()).unwrap();
        let mut command = command("prometheus");
        command
            .arg(format!("--config.file={}", file.display()))
            .arg(format!(
                "--storage.tsdb.path={}",
                directory.join("tsdb").display()
            ))
            .arg("--web.listen-address=127.0.0.1:0")
            .stderr(Stdio::piped());
        let mut process = Process::spawn("prometheus", &mut command);
        let stderr = process.child.stderr.take().unwrap();
        let mut lines = BufReader::new(stderr).lines();
        // The two lines come in any order.
        let ready = async {
            let mut listening = None;
            let mut is_ready = false;
            while let Some(line) = lines.next_line().await.unwrap() {
                if let Some((_, address)) = line.split_once("msg=\"Listening on\" address=") {
                    listening = Some(address.parse().unwrap());
                }
                is_ready |= line.contains("Server is ready");
                if let Some(address) = listening.filter(|_| is_ready) {
                    return address;
                }
            }
            panic!("Prometheus did not start");
        };
        let address = within("Prometheus", ready).await;
        // It must not wait for a reader.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        Self { process, address }
    }

    /// Calls its API.
    async fn api(&self, call: &str) -> Value {
        let answer = request(self.address, "GET", &format!("/api/v1/{call}")).await;
        let answer: Value = serde_json::from_str(&answer.body).unwrap();
        assert_eq!(answer["status"], "success", "{answer}");
        answer["data"].clone()
    }

    /// Returns the result of the query when there is one.
    async fn query(&self, query: &str) -> Vec<Value> {
        let query = format!("query?query={query}");
        // Prometheus reports no end of a scrape.
        let mut checks = interval(Duration::from_millis(50));
        let found = async {
            loop {
                let data = self.api(&query).await;
                let result = data["result"].as_array().unwrap();
                if !result.is_empty() {
                    return result.clone();
                }
                checks.tick().await;
            }
        };
        within(format!("a result of {query}"), found).await
    }
}

/// Real QEMU with firmware only, dbus-daemon, vcpud-exporter, Prometheus.
#[tokio::test]
async fn prometheus_scrapes_a_machine_and_knows_the_alerts() {
    let world = World::without_polkit().await;
    let _qemu = Qemu::start(&world, "web-1", &Boot::FIRMWARE).await;
    let machine = world.machine("web-1").await;
    machine.set(3).await.unwrap();
    let socket = ExporterSocket::listen();
    let _exporter = socket.start(&world, &[]);
    let mut prometheus = Prometheus::start(world.bus.directory(), socket.address()).await;

    let present = prometheus.query("vcpud_vcpus").await;
    let labels = json!({
        "__name__": "vcpud_vcpus",
        "instance": socket.address().to_string(),
        "job": "vcpud",
        "machine": "web-1",
    });
    assert_eq!(present.len(), 1, "{present:?}");
    assert_eq!(present[0]["metric"], labels);
    assert_eq!(present[0]["value"][1], "3");
    let usage = prometheus.query("vcpud_vcpu_usage_seconds_total%3E0").await;
    let vcpus: BTreeSet<_> = usage
        .iter()
        .map(|series| series["metric"]["vcpu"].as_str())
        .collect();
    assert_eq!(vcpus, [Some("0"), Some("1"), Some("2")].into());
    // A scrape on a busy machine can fail.
    assert_eq!(prometheus.query("up%3D%3D1").await.len(), 1);
    // Prometheus takes the types from the page.
    let types = prometheus.api("metadata?metric=vcpud_removals").await;
    assert_eq!(types["vcpud_removals"][0]["type"], "counter", "{types}");

    let groups = prometheus.api("rules").await;
    let rules = groups["groups"][0]["rules"].as_array().unwrap();
    assert_eq!(rules.len(), 3, "{groups}");
    prometheus.process.kill().await;
}

/// Returns the names of metrics in `text`.
fn metrics_in(text: &str) -> BTreeSet<String> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let words = text.split(|c| !is_part(c));
    let metrics = words.filter(|word| word.starts_with("vcpud_"));
    metrics.map(str::to_owned).collect()
}

/// Fake QEMU, dbus-daemon, vcpud-exporter as the user `nobody`.
#[tokio::test]
async fn each_metric_of_the_alerts_and_the_dashboard_exists_and_vanishes_with_the_machine() {
    let world = World::without_polkit().await;
    let peer = world.peer("web", Model::x86(1, 4));
    let machine = world.machine("web").await;
    let socket = ExporterSocket::listen();
    let _exporter = socket.start(&world, &[]);
    let page = socket.metrics().await;
    assert!(
        page.contains("\nvcpud_max_vcpus{machine=\"web\"} 4\n"),
        "{page}"
    );
    assert!(
        page.contains("\nvcpud_qmp_connections_total{machine=\"web\"} 1\n"),
        "{page}"
    );

    // Of a counter, the description has the name without the suffix.
    let known: BTreeSet<String> = metrics_in(&page)
        .into_iter()
        .flat_map(|name| [format!("{name}_total"), name])
        .collect();
    for file in [RULES, DASHBOARD] {
        let used = metrics_in(&fs::read_to_string(path(file)).unwrap());
        assert!(used.len() > 3, "{used:?}");
        let unknown: Vec<_> = used.difference(&known).collect();
        assert!(unknown.is_empty(), "{file} uses {unknown:?}");
    }
    let dashboard = fs::read_to_string(path(DASHBOARD)).unwrap();
    serde_json::from_str::<Value>(&dashboard).unwrap();

    drop(machine);
    let mark = world.signals.mark().await;
    drop(peer);
    fs::remove_file(world.socket("web")).unwrap();
    world.signals.removal_of("web", mark).await;
    let page = socket.metrics().await;
    assert!(page.lines().all(|line| line.starts_with('#')), "{page}");
    assert!(page.ends_with("# EOF\n"), "{page}");
}

/// promtool.
#[test]
fn the_alerts_are_valid_and_fire_when_they_should() {
    for arguments in [
        ["check", "rules", RULES],
        ["test", "rules", "tests/fixtures/alerts.yml"],
    ] {
        let mut promtool = Command::new("promtool");
        promtool.current_dir(env!("CARGO_MANIFEST_DIR"));
        let output = promtool.args(arguments).output().expect("run tests/setup");
        assert!(output.status.success(), "{output:?}");
    }
}

/// dbus-daemon, which is started again, vcpud-exporter.
#[tokio::test]
async fn without_the_service_or_the_bus_there_are_no_metrics_but_a_reason() {
    let mut world = World::without_service().await;
    let socket = ExporterSocket::listen();
    let _exporter = socket.start(&world, &[]);
    let fails = async |reason: &str| {
        let answer = socket.request("GET", "/metrics").await;
        assert_eq!(answer.status, 503, "{answer:?}");
        assert!(answer.body.contains(reason), "{answer:?}");
    };
    fails("cannot get the statistics of vcpud").await;
    world.serve().await;
    socket.metrics().await;

    world.bus.stop().await;
    fails("cannot get the statistics of vcpud").await;
    world.bus.restart().await;
    world.reconnect().await;
    owned(&world.connection, "org.vcpud1").await;
    socket.metrics().await;
}

/// dbus-daemon, vcpud-exporter.
#[tokio::test]
async fn the_exporter_exits_when_it_is_idle_and_the_next_one_loses_no_request() {
    let world = World::without_polkit().await;
    let socket = ExporterSocket::listen();
    let mut exporter = socket.start(&world, &["--idle-exit", "300ms"]);
    assert!(exporter.wait().await.success());

    let request = socket.metrics();
    let start = async { socket.start(&world, &["--idle-exit", "300ms"]) };
    let (page, mut exporter) = tokio::join!(request, start);
    assert!(page.ends_with("# EOF\n"), "{page}");
    assert!(exporter.wait().await.success());
}

/// dbus-daemon, vcpud-exporter.
#[tokio::test]
async fn only_two_pages_can_be_read() {
    let world = World::without_polkit().await;
    let socket = ExporterSocket::listen();
    let _exporter = socket.start(&world, &[]);
    let page = socket.request("GET", "/metrics?x=1").await;
    assert_eq!(page.status, 200, "{page:?}");
    let media_type = "content-type: application/openmetrics-text; version=1.0.0";
    assert!(page.head.contains(media_type), "{page:?}");
    let head = socket.request("HEAD", "/metrics").await;
    let length = format!("content-length: {}", page.body.len());
    assert!(head.head.contains(&length), "{head:?}");
    assert_eq!((head.status, head.body.as_str()), (200, ""));
    let index = socket.request("GET", "/").await;
    assert_eq!(index.status, 200, "{index:?}");
    assert!(index.body.contains("href=\"/metrics\""), "{index:?}");
    for (method, path, status) in [
        ("GET", "/metrics/", 404),
        ("GET", "/../etc/passwd", 404),
        ("GET", "http://localhost/x", 404),
        ("POST", "/metrics", 405),
        ("DELETE", "/", 405),
        ("CONNECT", "localhost:22", 405),
        ("nonsense\n", "/", 400),
    ] {
        let answer = socket.request(method, path).await;
        assert_eq!(answer.status, status, "{method} {path}");
    }
}

/// Uses all connections of the exporter, and returns more clients than it has room for.
async fn fill(socket: &ExporterSocket) -> Vec<TcpStream> {
    loop {
        let mut idle = Vec::new();
        for _ in 0..MAX_CONNECTIONS + 8 {
            idle.push(socket.connect().await);
        }
        // The exporter closes each after 2 s. On a busy machine the first can be closed before the last is accepted.
        let mut most = 0;
        let is_full = || {
            most = most.max(socket.accepted());
            most >= MAX_CONNECTIONS
        };
        let full = timeout(IDLE_LIMIT, until("all connections to be in use", is_full)).await;
        assert!(most <= MAX_CONNECTIONS, "{most}");
        if full.is_ok() {
            return idle;
        }
    }
}

/// dbus-daemon, vcpud-exporter, clients that are slow, many, or send too much.
#[tokio::test]
async fn no_client_has_more_than_its_share() {
    let world = World::without_polkit().await;
    let socket = ExporterSocket::listen();
    let _exporter = socket.start(&world, &[]);

    // The head of a request is too long, or has too many lines.
    for head in [
        "x: y\r\n".repeat(200),
        format!("x: {}\r\n", "y".repeat(10_000)),
    ] {
        let mut stream = socket.connect().await;
        let request = format!("GET /metrics HTTP/1.1\r\n{head}\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let answer = read_to_end(&mut stream).await;
        assert!(
            answer.is_empty() || answer.starts_with("HTTP/1.1 431 "),
            "{answer}"
        );
    }

    // A slow client, and then more clients than there is room for: all of them get no answer in the end, and do
    // not prevent the last request.
    let mut slow = socket.connect().await;
    slow.write_all(b"GET /metrics HTTP/1.1\r\nHost: ")
        .await
        .unwrap();
    socket.metrics().await;
    let idle = within("all connections to be in use", fill(&socket)).await;
    socket.metrics().await;
    assert_eq!(read_to_end(&mut slow).await, "");
    for mut client in idle {
        assert_eq!(read_to_end(&mut client).await, "");
    }
}
