#!/usr/bin/env python3
"""measure.py VOS_AUTH [--accounts N]: the move of N accounts in Kratos's format, all kinds of passwords mixed.

Imports a file in one go, once more, and again with a kill -9 in the middle, compares what is stored, and lets 100 of each
kind log in over HTTP. Run it by `make import`: it empties the database that DATABASE_URL names.
"""

import argparse
import base64
import collections
import concurrent.futures
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid

PASSWORD = "con meo treo cay cau"
EACH = 100
KINDS = [line.split("\t") for line in pathlib.Path("tests/hashes.tsv").read_text().splitlines()]
WORKING = len(KINDS)
KINDS += [
    ["md5", "$md5$CY9rzUYh03PK3k6DJie09g=="],
    ["sha256", "$sha256$pf=e1NBTFR9e1BBU1NXT1JEfQ==$MTIz$oQSrEkuL0sWCuv6yXJ2lPxk0NFQ1WOdWWYaeQmBG7lU="],
    ["hmac", "$hmac-sha256$YjhhZDA4YTM=$MTIzNDU="],
    ["ssha", "{SSHA}czO44OTV17PcF1cRxWrLZLy9xHd7CWyVYplr1rOhuMlx"],
    ["md5-crypt", "$md5-crypt$saltstring$6Kf3JjWTUOXqHsb4SSy6c0"],
    ["unknown", "$whirlpool$AAAA"],
    ["none", None],
]


def email(number):
    return f"trader-{number}@example.com"


def identity(number):
    address, (_, hashed) = email(number), KINDS[number % len(KINDS)]
    password = {
        "type": "password",
        "identifiers": [address],
        "config": {"hashed_password": hashed},
        "version": 0,
        "created_at": "2023-01-31T12:00:00Z",
        "updated_at": "2024-01-31T12:00:00.123456Z",
    }
    return {
        "id": str(uuid.UUID(int=(number * 0x9E3779B97F4A7C15F39CC0605CEDC835) % 2**128, version=4)),
        "credentials": {"password": password} if hashed else {},
        "schema_id": "default",
        "schema_url": "https://identity.example.com/schemas/ZGVmYXVsdA",
        "state": "inactive" if number % 1000 == 999 else "active",
        "state_changed_at": "2023-01-31T12:00:00Z",
        "traits": {"email": address, "name": {"first": "An", "last": "Trần"}, "desk": number % 40},
        "verifiable_addresses": [{"value": address, "verified": True, "via": "email", "status": "completed"}],
        "recovery_addresses": [{"value": address, "via": "email"}],
        "metadata_public": {"locale": "vi"} if number % 2 else None,
        "metadata_admin": None,
        "created_at": "2023-01-31T12:00:00Z",
        "updated_at": "2024-01-31T12:00:00Z",
        "organization_id": None,
    }


def sql(statement):
    command = ["psql", "-qAtX", "-v", "ON_ERROR_STOP=1", "-d", os.environ["DATABASE_URL"], "-c", statement]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def stored():
    """Everything that the accounts are, but the time of their import, as one number."""
    row = "md5((to_jsonb(a) - 'updated_at' - 'imported_at')::text)"
    return sql(f"SELECT count(*), md5(string_agg({row}, '' ORDER BY id)) FROM account a")


def run_import(program, file, kill_after=None):
    """Runs an import, and gives its seconds, its peak of memory in MiB, and what it said."""
    began, peak = time.monotonic(), 0.0
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen([program, "account", "import", file], stdout=said, stderr=sys.stderr)
        while process.poll() is None:
            status = pathlib.Path(f"/proc/{process.pid}/status").read_text()
            if line := re.search(r"VmHWM:\s+(\d+)", status):
                peak = int(line[1]) / 1024
            if kill_after and time.monotonic() - began > kill_after:
                process.kill()
            time.sleep(0.02)
        said.seek(0)
        return time.monotonic() - began, peak, said.read(), process.returncode


def row(what, count, outcome):
    seconds, peak, said, _ = outcome
    print(f"{what:28} {seconds:8.1f} s {count / seconds:10.0f} a second {peak:7.1f} MiB   {said.splitlines()[0]}", flush=True)


def log_in(address, number, password):
    body = json.dumps({"identifier": email(number), "password": password}).encode()
    headers = {"content-type": "application/json"}
    for _ in range(100):
        try:
            with urllib.request.urlopen(urllib.request.Request(f"http://{address}/api/auth/login", body, headers)) as answer:
                return answer.status
        except urllib.error.HTTPError as error:
            # The queue of the hashing threads is full: as the answer says, come back later.
            if error.code != 503:
                return error.code
            time.sleep(0.5)
    return 503


def logins(program, folder, count):
    """100 of each kind log in; a few once more, with what was hashed anew, and with a wrong password."""
    secret = "1:" + base64.b64encode(os.urandom(32)).decode()
    keys = f"{folder}/jwt"
    subprocess.run([program, "key", "generate", "--jwt-keys", keys], check=True, stdout=subprocess.DEVNULL)
    environment = os.environ | {
        "PUBLIC_ORIGIN": "https://platform.verolabs.co", "HTTP_ADDR": "127.0.0.1:0", "METRICS_ADDR": "127.0.0.1:0",
        "RECOVERY_SECRETS": secret, "DEVICE_SECRETS": secret, "JWT_KEYS": keys, "SMTP_RELAYS": "smtp://127.0.0.1:9?tls=none",
        "NETWORK_BURST": "1000000", "NETWORK_PER_MINUTE": "1000000", "LOG_FORMAT": "json", "DRAIN_DELAY": "0s",
    }
    service = subprocess.Popen([program, "serve"], env=environment, stderr=subprocess.PIPE, text=True)
    try:
        for line in service.stderr:
            if '"serving"' in line:
                address = json.loads(line)["http_addr"]
                break
        concurrent.futures.ThreadPoolExecutor(1).submit(service.stderr.read)
        # Inactive ones are left out.
        chosen = {kind: [n for n in range(kind, count, len(KINDS)) if n % 1000 != 999][:EACH] for kind in range(WORKING)}
        with concurrent.futures.ThreadPoolExecutor(4) as clients:
            for password, expected, each in [(PASSWORD, 200, EACH), (PASSWORD, 200, 2), ("con meo treo cay chuoi", 401, 2)]:
                calls = {kind: [clients.submit(log_in, address, n, password) for n in numbers[:each]]
                         for kind, numbers in chosen.items()}
                answers = {kind: collections.Counter(call.result() for call in called) for kind, called in calls.items()}
                for kind, statuses in answers.items():
                    assert set(statuses) == {expected}, (KINDS[kind][0], statuses)
                if expected == 200:
                    print("logged in: " + ", ".join(f"{KINDS[kind][0]} {statuses[200]}" for kind, statuses in answers.items()))
        addresses = ",".join(f"'{email(n)}'" for numbers in chosen.values() for n in numbers)
        hashed_anew = sql(f"SELECT count(*) FROM account WHERE email IN ({addresses}) AND password_hash LIKE '$argon2id$v=19$m=19456,t=2,p=1$%'")
        print(f"hashed anew: {hashed_anew} of {sum(map(len, chosen.values()))}")
        assert int(hashed_anew) == sum(map(len, chosen.values()))
    finally:
        service.terminate()
        service.wait()


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("program")
    arguments.add_argument("--accounts", type=int, default=1_000_000)
    given = arguments.parse_args()
    program, count = os.path.abspath(given.program), given.accounts
    sql("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    subprocess.run([program, "migrate"], check=True, stdout=subprocess.DEVNULL)
    with tempfile.TemporaryDirectory(dir=os.path.dirname(program)) as folder:
        file = f"{folder}/identities.ndjson"
        with open(file, "w") as out:
            for number in range(count):
                out.write(json.dumps(identity(number), ensure_ascii=False) + "\n")
        print(f"{count} identities, {len(KINDS)} kinds of passwords, {os.path.getsize(file) / 2**20:.0f} MiB", flush=True)

        whole = run_import(program, file)
        row("in one go", count, whole)
        print("\n".join(whole[2].splitlines()[1:]), flush=True)
        expected = stored()
        row("the same file again", count, run_import(program, file))
        assert stored() == expected

        sql("TRUNCATE account CASCADE")
        killed = run_import(program, file, kill_after=whole[0] / 2)
        there = sql("SELECT count(*) FROM account")
        assert killed[3] == -9 and 0 < int(there) < count, (killed, there)
        print(f"killed with -9 after {killed[0]:.1f} s, {there} accounts are there", flush=True)
        row("run again after the kill", count, run_import(program, file))
        assert stored() == expected, "not the same accounts"
        print(f"the same accounts as in one go: {expected}", flush=True)
        logins(program, folder, count)


main()
