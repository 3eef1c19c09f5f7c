"""What one start and one delivered code cost, in counts that machine noise does not change: instructions of the service under
callgrind; statements, octets of WAL and touched buffers of PostgreSQL. Run by `make cost`, which preloads pg_stat_statements;
ends with an error if a count is over its bound.

A start is one for an unknown address, its mail's row deleted by the courier. A delivered code is what follows a start for a known
address: the mail of a backlog is claimed, accepted by a relay that accepts everything, and deleted. A code that a user waits for
costs both.

    measure.py BINARY [--start-instructions N …] [--code-instructions N …] [--by-statement]
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

WARM_UP, STARTS, CODES = 200, 1000, 400
# A backlog, its accounts and sessions; a mail's id carries its time, by which the courier goes.
BACKLOG = """
    WITH pending AS MATERIALIZED (
        SELECT n, 'pending' || n || '@example.org' AS email, clock_timestamp() AS at,
            lpad(to_hex((extract(epoch FROM clock_timestamp()) * 1000)::bigint), 12, '0') || '7'
                || right(replace(gen_random_uuid()::text, '-', ''), 19) AS id
        FROM generate_series(1, {mails}) AS n
    ), accounts AS (
        INSERT INTO account (id, email, created_at, updated_at) SELECT id::uuid, email, at, at FROM pending
    ), sessions AS (
        INSERT INTO recovery_session (id, token_hash, email, key_id, created_at, expires_at, client_ip, user_agent)
        SELECT id::uuid, sha256(id::bytea), email, 'cost', at, at + interval '10 minutes', '127.0.0.1', 'a browser'
        FROM pending
    )
    INSERT INTO outbox (id, kind, recovery_session_id, next_attempt_at, expires_at, created_at)
    SELECT id::uuid, 'recovery_code', id::uuid, at, at + interval '10 minutes', at FROM pending ORDER BY id"""


def main():
    options = argparse.ArgumentParser()
    options.add_argument("binary")
    options.add_argument("--by-statement", action="store_true", help="say what PostgreSQL spends a code on")
    for bound in ("instructions", "statements", "wal", "buffers"):
        options.add_argument(f"--start-{bound}", type=float, help="the most that a start may cost")
        options.add_argument(f"--code-{bound}", type=float, help="the most that a delivered code may cost")
    options = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(options.binary, folder)
        try:
            costs = {"start": bench.start(), "code": bench.code()}
        finally:
            bench.relay.kill()
    if options.by_statement:
        print(bench.by_statement)
    well = True
    for what, counts in costs.items():
        for name, cost in counts.items():
            bound = getattr(options, f"{what}_{name}")
            over = bound is not None and cost > bound
            well &= not over
            told = f"  bound {bound:,.0f}" if bound else ""
            print(f"{name:>12} a {what}: {cost:>12,.1f}" + told + ("  OVER" if over else ""))
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
        sql("CREATE EXTENSION IF NOT EXISTS pg_stat_statements")

    def start(self):
        """Runs with many starts less runs with few: what boot and stop cost cancels out."""
        few, many = (self.counts(starts=starts) for starts in (WARM_UP, WARM_UP + STARTS))
        return {name: (many[name] - few[name]) / STARTS for name in many}

    def code(self):
        few, many = (self.counts(mails=mails) for mails in (WARM_UP, WARM_UP + CODES))
        return {name: (many[name] - few[name]) / CODES for name in many}

    def counts(self, starts=0, mails=0):
        """Of one run as it is, and of another under callgrind."""
        storage = self.storage(starts, mails)
        self.has_backlog(mails)
        valgrind = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={self.folder}/callgrind"]
        with Service(self, valgrind) as service:
            service.starts(starts)
        with open(f"{self.folder}/callgrind") as file:
            return storage | {"instructions": int(re.search(r"^(?:totals|summary): (\d+)", file.read(), re.M)[1])}

    def storage(self, starts, mails):
        self.has_backlog(mails)
        wal = sql("SELECT pg_stat_statements_reset()", "SELECT pg_current_wal_insert_lsn() - '0/0'").split()[-1]
        with Service(self, []) as service:
            service.starts(starts)
        statements, buffers, after = sql(
            """SELECT sum(calls), sum(shared_blks_hit + shared_blks_read), pg_current_wal_insert_lsn() - '0/0'
               FROM pg_stat_statements WHERE query !~ 'pg_stat_statements|^SELECT count'"""
        ).split("|")
        self.by_statement = statements_by_cost()
        return {"statements": int(statements), "wal": int(after) - int(wal), "buffers": int(buffers)}

    def has_backlog(self, mails):
        # The first change of a page after a checkpoint writes the whole page into the WAL, so all pages are new ones.
        sql("TRUNCATE account, recovery_session, outbox, throttle, audit_event CASCADE", "CHECKPOINT")
        if mails:
            sql(BACKLOG.format(mails=mails))


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
        """One after the other; returns when the courier is done with them, and with what was there before."""
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


def statements_by_cost():
    return sql(
        """SELECT format('%s calls, %s buffers, %s octets of WAL, %s ms: %s', calls, shared_blks_hit + shared_blks_read, wal_bytes,
                  round(total_exec_time), left(regexp_replace(query, '\\s+', ' ', 'g'), 100))
           FROM pg_stat_statements WHERE calls > 20 ORDER BY total_exec_time DESC"""
    )


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
