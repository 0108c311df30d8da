//! `mlx_lm launch`: start a command of this program as several ranks, here or through ssh, as Python's `mlx.launch` does.

use std::collections::BTreeMap;
use std::env;
use std::ffi::OsString;
use std::fs;
use std::io::{BufRead, BufReader, IsTerminal, Read, Write};
use std::net::{IpAddr, TcpListener};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::Deserialize;
use signal_hook::consts::{SIGINT, SIGTERM};
use tempfile::NamedTempFile;

use super::process::{FAILURE, SUCCESS, Usage};
use super::ranks::LAUNCHER;

/// How long ranks may take to end by themselves once one has ended.
const PATIENCE: Duration = Duration::from_secs(3);
/// How often it is looked whether they have.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Flags, hostfile and environment are those of Python's `mlx.launch`.
#[derive(Debug, Args)]
pub struct LaunchArgs {
    /// How many ranks each of --hosts runs
    #[arg(short = 'n', long = "repeat-hosts", value_name = "N", default_value = "1", value_parser = ranks)]
    pub ranks: usize,
    /// Machines that ssh reaches, by addresses for --backend ring, separated by commas
    #[arg(long, value_name = "HOSTS", default_value = "127.0.0.1", conflicts_with = "hostfile")]
    pub hosts: String,
    /// Machines in JSON: a list of {"ssh": NAME, "ips": [ADDRESS, …]}
    #[arg(long, value_name = "FILE")]
    pub hostfile: Option<PathBuf>,
    /// What carries numbers between ranks [default: that of the hostfile, else ring]
    #[arg(long, value_enum, value_name = "BACKEND")]
    pub backend: Option<RanksBackend>,
    /// Set an environment variable of all ranks (repeatable)
    #[arg(long, value_name = "NAME=VALUE")]
    pub env: Vec<String>,
    /// Run in this directory [default: this one, where it exists]
    #[arg(long, value_name = "DIR")]
    pub cwd: Option<PathBuf>,
    /// This program on the other machines [default: where it is on this one]
    #[arg(long, value_name = "PATH")]
    pub program: Option<PathBuf>,
    /// The first port that ranks listen on, one more for each [default: free ones where all ranks are here, else 32323]
    #[arg(long, short = 'p', value_name = "PORT")]
    pub starting_port: Option<u16>,
    /// Connections of the ring for each address
    #[arg(long, value_name = "N", default_value = "1", value_parser = ranks)]
    pub connections_per_ip: usize,
    /// The port of rank 0 for --backend nccl
    #[arg(long, value_name = "PORT", default_value = "12345")]
    pub nccl_port: u16,
    /// An argument for mpirun, with --backend mpi (repeatable)
    #[arg(long, value_name = "ARGUMENT", allow_hyphen_values = true)]
    pub mpi_arg: Vec<String>,
    /// A command of this program, such as `chat --model-root PATH`
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
}

/// MLX's ways to exchange numbers between processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum RanksBackend {
    /// TCP
    Ring,
    /// MPI, by mpirun
    Mpi,
    /// NVIDIA's NCCL
    Nccl,
    /// RDMA over Thunderbolt, on Apple silicon
    Jaccl,
    /// The same, each machine with its neighbours only
    JacclRing,
    /// Whichever fits: the ring
    Any,
}

/// A hostfile of `mlx.launch`.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Hostfile {
    Hosts(Vec<Host>),
    Settings {
        #[serde(default)]
        backend: Option<String>,
        #[serde(default)]
        envs: Vec<String>,
        hosts: Vec<Host>,
    },
}

/// A machine, or one of several ranks of a machine.
#[derive(Debug, Clone, Deserialize)]
struct Host {
    ssh: String,
    #[serde(default)]
    ips: Vec<String>,
    #[serde(default)]
    rdma: Vec<serde_json::Value>,
}

impl Host {
    fn is_here(&self) -> bool {
        ["127.0.0.1", "::1", "localhost"].contains(&self.ssh.as_str())
    }
}

/// What a rank is started with besides the command.
#[derive(Debug, Default)]
struct Environment {
    variables: BTreeMap<String, String>,
    /// Variables that name a file with this content.
    files: BTreeMap<String, String>,
}

pub fn launch(args: LaunchArgs) -> Result<u8> {
    let (hosts, backend, envs) = hosts(&args)?;
    let mut common = Environment::default();
    for setting in envs.iter().chain(&args.env) {
        let Some((name, value)) = setting.split_once('=').filter(|(name, _)| is_name(name)) else {
            return Err(Usage(format!("--env {setting}: expected NAME=VALUE")).into());
        };
        common.variables.insert(name.to_owned(), value.to_owned());
    }
    match backend {
        RanksBackend::Mpi => return mpi(&hosts, &common, &args),
        RanksBackend::Any | RanksBackend::Ring => ring(&hosts, &mut common, &args)?,
        RanksBackend::Nccl => {
            let host = first_address(&hosts)?;
            common.variables.insert("NCCL_HOST_IP".into(), host);
            common.variables.insert("NCCL_PORT".into(), args.nccl_port.to_string());
            common.variables.insert("MLX_WORLD_SIZE".into(), hosts.len().to_string());
        }
        RanksBackend::Jaccl | RanksBackend::JacclRing => {
            if hosts.iter().any(|host| host.rdma.len() != hosts.len()) {
                bail!("the hostfile names no RDMA device of each host to each, which this backend needs (`rdma`)");
            }
            let port = args.starting_port.unwrap_or(STARTING_PORT);
            common.variables.insert("MLX_JACCL_COORDINATOR".into(), format!("{}:{port}", first_address(&hosts)?));
            if backend == RanksBackend::JacclRing {
                common.variables.insert("MLX_JACCL_RING".into(), "1".into());
            }
            let devices: Vec<_> = hosts.iter().map(|host| &host.rdma).collect();
            common.files.insert("MLX_IBV_DEVICES".into(), serde_json::to_string(&devices)?);
        }
    }
    let here = hosts.iter().filter(|host| host.is_here()).count();
    let files = Files::write(&common.files)?;
    let interrupted = Arc::new(AtomicBool::new(false));
    let terminated = Arc::new(AtomicBool::new(false));
    // Rank 0 hears Ctrl-C itself, and decides what ends.
    signal_hook::flag::register(SIGINT, Arc::clone(&interrupted))?;
    signal_hook::flag::register(SIGTERM, Arc::clone(&terminated))?;
    let mut ranks = Vec::with_capacity(hosts.len());
    for (rank, host) in hosts.iter().enumerate() {
        let mut variables = common.variables.clone();
        variables.insert("MLX_RANK".into(), rank.to_string());
        if backend == RanksBackend::Nccl {
            let of_host = hosts[..rank].iter().filter(|other| other.ssh == host.ssh).count();
            variables.entry("CUDA_VISIBLE_DEVICES".into()).or_insert(of_host.to_string());
        }
        let command = if host.is_here() {
            if here > 1 && env::var_os("MLX_LM_THREADS").is_none() {
                // Ranks of one machine share its cores.
                let threads = (num_cpus::get_physical() / here).max(1);
                variables.entry("MLX_LM_THREADS".into()).or_insert(threads.to_string());
            }
            local(&variables, &files, &args)?
        } else {
            remote(host, &variables, &common.files, rank, &args)?
        };
        match start(command, rank) {
            Ok(child) => ranks.push(child),
            Err(error) => {
                end(&mut ranks);
                return Err(error).context(format!("rank {rank} on {}", host.ssh));
            }
        }
    }
    watch(ranks, &terminated)
}

/// Where ranks listen by default, as in `mlx.launch`.
const STARTING_PORT: u16 = 32323;

fn hosts(args: &LaunchArgs) -> Result<(Vec<Host>, RanksBackend, Vec<String>)> {
    let Some(path) = &args.hostfile else {
        let names = args.hosts.split(',');
        let mut hosts = Vec::new();
        for name in names {
            if name.is_empty() {
                return Err(Usage("--hosts: a name is empty".into()).into());
            }
            let ips = name.parse::<IpAddr>().map(|ip| vec![ip.to_string()]).unwrap_or_default();
            let host = Host { ssh: name.to_owned(), ips, rdma: Vec::new() };
            hosts.extend(std::iter::repeat_n(host, args.ranks));
        }
        return Ok((hosts, args.backend.unwrap_or(RanksBackend::Any), Vec::new()));
    };
    let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let form =
        r#"expected a list of {"ssh": NAME, "ips": [ADDRESS, …]}, or {"hosts": that list, "backend": …, "envs": […]}"#;
    let hostfile = serde_json::from_str(&text).map_err(|_| anyhow::anyhow!("{}: {form}", path.display()))?;
    let (hosts, backend, envs) = match hostfile {
        Hostfile::Hosts(hosts) => (hosts, None, Vec::new()),
        Hostfile::Settings { backend, envs, hosts } => (hosts, backend.filter(|name| !name.is_empty()), envs),
    };
    if hosts.is_empty() {
        bail!("{}: it names no host", path.display());
    }
    let named = backend.map(|name| {
        let found = RanksBackend::from_str(&name, false);
        found.map_err(|_| {
            anyhow::anyhow!("{}: `backend` is {name:?}, which is none of ring, mpi, nccl, jaccl", path.display())
        })
    });
    let backend = args.backend.map(Ok).or(named).transpose()?.unwrap_or(RanksBackend::Any);
    Ok((hosts, backend, envs))
}

fn is_name(name: &str) -> bool {
    !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

fn first_address(hosts: &[Host]) -> Result<String> {
    let first = hosts[0].ips.first();
    first.cloned().with_context(|| format!("rank 0, {}, needs an address that the others reach (`ips`)", hosts[0].ssh))
}

/// Addresses for MLX's ring: each rank's, on ports that are free where all ranks are here.
fn ring(hosts: &[Host], common: &mut Environment, args: &LaunchArgs) -> Result<()> {
    let mut port = args.starting_port.unwrap_or(STARTING_PORT);
    let any_port = args.starting_port.is_none() && hosts.iter().all(Host::is_here);
    let mut taken = Vec::new();
    let mut addresses = Vec::new();
    for host in hosts {
        if host.ips.is_empty() {
            bail!("{} has no address; MLX's ring needs the `ips` of each host in a hostfile", host.ssh);
        }
        let mut own = Vec::new();
        for ip in &host.ips {
            for _ in 0..args.connections_per_ip {
                if any_port {
                    let listener = TcpListener::bind((ip.as_str(), 0)).with_context(|| ip.clone())?;
                    own.push(listener.local_addr()?.to_string());
                    taken.push(listener); // until all have one
                } else {
                    own.push(format!("{ip}:{port}"));
                    port += 1;
                }
            }
        }
        addresses.push(own);
    }
    let text = if hosts.len() > 1 { serde_json::to_string(&addresses)? } else { String::new() };
    common.files.insert("MLX_HOSTFILE".into(), text);
    Ok(())
}

/// Files of the environment on this machine, which live as long as this.
struct Files(Vec<(String, NamedTempFile)>);

impl Files {
    fn write(contents: &BTreeMap<String, String>) -> Result<Self> {
        let write = |(name, content): (&String, &String)| {
            let mut file = NamedTempFile::new()?;
            file.write_all(content.as_bytes())?;
            Ok((name.clone(), file))
        };
        contents.iter().map(write).collect::<Result<_>>().map(Files)
    }
}

fn local(variables: &BTreeMap<String, String>, files: &Files, args: &LaunchArgs) -> Result<Command> {
    let mut command = Command::new(program(args)?);
    command.env(LAUNCHER, std::process::id().to_string());
    command.args(&args.command).envs(variables).envs(files.0.iter().map(|(name, file)| (name, file.path())));
    if let Some(directory) = &args.cwd {
        command.current_dir(directory);
    }
    Ok(command)
}

fn program(args: &LaunchArgs) -> Result<PathBuf> {
    Ok(match &args.program {
        Some(program) => program.clone(),
        None => env::current_exe()?,
    })
}

/// The same on another machine, by its shell.
fn remote(
    host: &Host,
    variables: &BTreeMap<String, String>,
    files: &BTreeMap<String, String>,
    rank: usize,
    args: &LaunchArgs,
) -> Result<Command> {
    let quoted = |text: &str| -> Result<String> { Ok(shlex::try_quote(text)?.into_owned()) };
    let directory = args.cwd.clone().map_or_else(env::current_dir, Ok)?.display().to_string();
    let or_stay = if args.cwd.is_some() { "exit 1" } else { "true" };
    let mut script = format!("cd {} || {or_stay}; ", quoted(&directory)?);
    for (name, value) in variables {
        script += &format!("export {name}={}; ", quoted(value)?);
    }
    for (name, content) in files {
        script += &format!("{name}=$(mktemp) && printf %s {} >\"${name}\"; export {name}; ", quoted(content)?);
    }
    let words = std::iter::once(program(args)?.into_os_string()).chain(args.command.iter().cloned());
    for word in words {
        script += &quoted(&word.to_string_lossy())?;
        script.push(' ');
    }
    let remove: Vec<String> = files.keys().map(|name| format!("\"${name}\"")).collect();
    script += &format!("; code=$?; rm -f {}; exit $code", remove.join(" "));
    let mut command = Command::new("ssh");
    // With a terminal of its own, what runs there ends with the connection.
    if rank > 0 || std::io::stdin().is_terminal() {
        command.arg("-tt");
    }
    command.args(["-o", "LogLevel=QUIET", &host.ssh, &format!("sh -c {}", quoted(&script)?)]);
    Ok(command)
}

/// Start a rank: the first has this process's input and output, the others' lines go to stderr with their rank.
fn start(mut command: Command, rank: usize) -> Result<Child> {
    if rank == 0 {
        return Ok(command.spawn()?);
    }
    // In a group of its own, so that Ctrl-C reaches rank 0 alone.
    command.process_group(0).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn()?;
    let outputs: [Option<Box<dyn Read + Send>>; 2] =
        [child.stdout.take().map(|out| Box::new(out) as _), child.stderr.take().map(|out| Box::new(out) as _)];
    for output in outputs.into_iter().flatten() {
        thread::spawn(move || {
            for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
                note!("rank {rank}: {}", String::from_utf8_lossy(&line).trim_end());
            }
        });
    }
    Ok(child)
}

/// Wait for all ranks. Rank 0's exit code is that of all, unless another rank ends before it is told to.
fn watch(mut ranks: Vec<Child>, terminated: &AtomicBool) -> Result<u8> {
    let mut ended: Vec<Option<ExitStatus>> = vec![None; ranks.len()];
    let mut since: Option<Instant> = None;
    let mut is_told = false;
    loop {
        for (child, status) in ranks.iter_mut().zip(&mut ended) {
            if status.is_none() {
                *status = child.try_wait()?;
            }
        }
        if ended.iter().all(Option::is_some) {
            break;
        }
        if terminated.load(Ordering::SeqCst) && !is_told {
            is_told = true;
            let _ = kill(Pid::from_raw(ranks[0].id() as i32), Signal::SIGTERM); // which may have ended
        }
        if ended.iter().any(Option::is_some) && since.get_or_insert_with(Instant::now).elapsed() > PATIENCE {
            break;
        }
        thread::sleep(LOOK_EVERY);
    }
    let unfinished: Vec<usize> = (0..ranks.len()).filter(|&rank| ended[rank].is_none()).collect();
    end(&mut ranks);
    // What broke off by itself explains what the others did.
    let broken = |status: &ExitStatus| status.signal().is_some();
    let first = |is: &dyn Fn(&ExitStatus) -> bool| ended.iter().position(|status| status.as_ref().is_some_and(is));
    if let Some(rank) = first(&broken) {
        let signal = ended[rank].and_then(|status| status.signal()).unwrap_or_default();
        let name = Signal::try_from(signal).map_or(signal.to_string(), |signal| signal.as_str().to_owned());
        note!("error: rank {rank} was ended by {name}; all ranks end");
        return Ok(FAILURE);
    }
    match (ended[0].and_then(|status| status.code()), first(&|status| !status.success())) {
        (Some(0), None) => Ok(SUCCESS),
        (Some(code), _) if code != 0 => Ok(code as u8),
        (_, Some(rank)) => {
            let code = ended[rank].and_then(|status| status.code()).unwrap_or_default();
            note!("error: rank {rank} ended with exit code {code}; all ranks end");
            Ok(FAILURE)
        }
        (_, None) => {
            note!("error: rank {unfinished:?} went on when the others had ended, and was ended");
            Ok(FAILURE)
        }
    }
}

/// End what has not ended by itself.
fn end(ranks: &mut [Child]) {
    for child in ranks {
        let _ = child.kill(); // it may have ended
        let _ = child.wait();
    }
}

/// Start all ranks by `mpirun`, and be it.
fn mpi(hosts: &[Host], common: &Environment, args: &LaunchArgs) -> Result<u8> {
    let mut slots: BTreeMap<&str, usize> = BTreeMap::new();
    for host in hosts {
        *slots.entry(&host.ssh).or_default() += 1;
    }
    let mut hostfile = NamedTempFile::new()?;
    for (name, n) in slots {
        writeln!(hostfile, "{name} slots={n}")?;
    }
    let mut command = Command::new("mpirun");
    command.arg("--hostfile").arg(hostfile.path());
    if let Some(directory) = &args.cwd {
        command.arg("-wdir").arg(directory);
    }
    for (name, value) in &common.variables {
        command.args(["-x", &format!("{name}={value}")]);
    }
    let extra: Vec<OsString> = args.mpi_arg.iter().map(OsString::from).collect();
    command.args(extra).arg(program(args)?).args(&args.command);
    let status = command.status().context("mpirun, which starts the ranks of --backend mpi")?;
    Ok(status.code().unwrap_or(FAILURE.into()) as u8)
}

fn ranks(text: &str) -> Result<usize, String> {
    let n = text.parse().ok().filter(|n| (1..=256).contains(n));
    n.ok_or_else(|| "expected a whole number from 1 to 256".to_owned())
}
