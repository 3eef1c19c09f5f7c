"""What one start costs, in figures that do not depend on the machine's mood: instructions of the service under callgrind,
statements and WAL octets of PostgreSQL. Run by `make cost`; ends with an error if a figure is over its bound.

    measure.py BINARY [--instructions N] [--statements N] [--wal N]
"""
import argparse
import atexit
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time

WARM_UP, STARTS = 200, 1000


def main():
    options = argparse.ArgumentParser()
    options.add_argument("binary")
    for bound in ("instructions", "statements", "wal"):
        options.add_argument(f"--{bound}", type=float, help="the most that a start may cost")
    options = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(options.binary, folder)
        try:
            costs = bench.storage() | bench.instructions()
        finally:
            bench.relay.kill()
    well = True
    for name, cost in costs.items():
        bound = getattr(options, name)
        over = bound is not None and cost > bound
        well &= not over
        print(f"{name:>12} a start: {cost:>12,.1f}" + (f"  bound {bound:,.0f}" if bound else "") + ("  OVER" if over else ""))
    print(json.dumps(costs))
    sys.exit(0 if well else 1)


class Bench:
    def __init__(self, binary, folder):
        self.binary, self.folder = binary, folder
        sql("DROP SCHEMA public CASCADE", "CREATE SCHEMA public")
        self.relay = subprocess.Popen([sys.executable, "benches/start/relay.py", f"{folder}/port", f"{folder}/taken"])
        atexit.register(self.relay.kill)
        wait_for(lambda: os.path.exists(f"{folder}/port") and open(f"{folder}/port").read())
        subprocess.run([binary, "key", "generate", "--jwt-keys", f"{folder}/jwt"], check=True, stdout=subprocess.DEVNULL)
        subprocess.run([binary, "migrate"], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def instructions(self):
        """Of a run with many starts less those of one with few: boot and stop cancel out."""
        few, many = (self.under_callgrind(starts) for starts in (WARM_UP, WARM_UP + STARTS))
        return {"instructions": (many - few) / STARTS}

    def under_callgrind(self, starts):
        valgrind = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={self.folder}/callgrind"]
        with Service(self, valgrind) as service:
            service.starts(starts)
        with open(f"{self.folder}/callgrind") as file:
            return int(re.search(r"^(?:totals|summary): (\d+)", file.read(), re.M)[1])

    def storage(self):
        """What PostgreSQL does for a start and for what follows of it: the courier finds that nobody is there."""
        sql("ALTER DATABASE vos_auth SET log_min_duration_statement = 0")
        with Service(self, []) as service:
            service.starts(WARM_UP)
            # What checkpoints cost is not the start's.
            sql("CHECKPOINT")
            service.starts(WARM_UP)
            wal, log = sql("SELECT pg_current_wal_insert_lsn() - '0/0'"), log_size()
            service.starts(STARTS)
            wal = int(sql("SELECT pg_current_wal_insert_lsn() - '0/0'")) - int(wal)
            with open(f"{os.environ['PGHOST']}/postgres.log") as file:
                file.seek(log)
                statements = file.read().count(" execute sqlx")
        sql("ALTER DATABASE vos_auth RESET log_min_duration_statement")
        return {"statements": statements / STARTS, "wal": wal / STARTS}


class Service:
    """The service under a tool, until the block ends."""

    def __init__(self, bench, tool):
        self.port, self.metrics = free_port(), free_port()
        relay = open(f"{bench.folder}/port").read()
        secret = "cost:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
        environment = {
            "DATABASE_URL": os.environ["DATABASE_URL"],
            "PUBLIC_ORIGIN": "https://platform.verolabs.co",
            "HTTP_ADDR": f"127.0.0.1:{self.port}",
            "METRICS_ADDR": f"127.0.0.1:{self.metrics}",
            "RECOVERY_SECRETS": secret,
            "DEVICE_SECRETS": secret,
            "JWT_KEYS": f"{bench.folder}/jwt",
            "SMTP_RELAYS": f"smtp://127.0.0.1:{relay}?tls=none",
            "DRAIN_DELAY": "0s",
            "NETWORK_BURST": "1000000",
            "LOG_FORMAT": "json",
            # One thread: how often others are woken is the machine's mood.
            "TOKIO_WORKER_THREADS": "1",
        }
        self.log = open(f"{bench.folder}/log", "w")
        self.process = subprocess.Popen([*tool, bench.binary, "serve"], env=environment, stderr=self.log, stdout=self.log)
        self.number = time.time_ns()

    def __enter__(self):
        def is_ready():
            if self.process.poll() is not None:
                sys.exit(open(self.log.name).read())
            try:
                connection = http.client.HTTPConnection("127.0.0.1", self.port)
                connection.request("GET", "/readyz")
                return connection.getresponse().status == 200
            except OSError:
                return False

        try:
            wait_for(is_ready)
        except BaseException:
            self.process.kill()
            raise
        return self

    def starts(self, count):
        """One after the other; returns when the courier is done with them."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port)
        for _ in range(count):
            self.number += 1
            body = json.dumps({"email": f"unknown-{self.number}@example.org"})
            connection.request("POST", "/api/auth/recovery/start", body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            answer.read()
            if answer.status != 200:
                sys.exit(f"a start was answered {answer.status}")
        wait_for(lambda: sql("SELECT count(*) FROM outbox") == "0")

    def __exit__(self, failure, *_):
        self.process.send_signal(signal.SIGKILL if failure else signal.SIGTERM)
        self.process.wait()
        self.log.close()


def sql(*statements):
    commands = [part for statement in statements for part in ("-c", statement)]
    run = subprocess.run(["psql", "-qAtd", os.environ["DATABASE_URL"], *commands], check=True, capture_output=True, text=True)
    return run.stdout.strip()


def log_size():
    return os.path.getsize(f"{os.environ['PGHOST']}/postgres.log")


def wait_for(condition):
    until = time.monotonic() + 60
    while not condition():
        if time.monotonic() > until:
            sys.exit("waited for a minute in vain")
        time.sleep(0.02)


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


main()
