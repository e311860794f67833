"""Seed known bugs into the code, one at a time, and check that a test fails for each.

``python -m tests.tools.seeded_bugs [WORD…]``. With words, only bugs whose names or files contain one are seeded.
It works on a clone of the last commit, never on the checkout. Prints a Markdown table; exits with 1 if a bug survives.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

TOP = Path(__file__).parents[2]
LIMIT_SECONDS = 600  # for the tests of one bug
SOUND_LIMIT_SECONDS = 3600  # for the tests of all bugs, once, without a bug
PIPELINE, STORE = "tests/integration/pipeline", "tests/integration/store"
POOLER = f"{STORE}/test_pgbouncer.py"
SPOOL_FOLDER = "tests/integration/spool"
KEEP = f"{SPOOL_FOLDER}/test_keep.py"
LOST_SPOOL = f"{SPOOL_FOLDER}/test_lost_spool.py"
DURABILITY = f"{PIPELINE}/test_durability.py"
SPOOL = f"{SPOOL_FOLDER}/test_spool.py {SPOOL_FOLDER}/test_spool_model.py"
WRITER = f"{PIPELINE}/test_writer.py"
VALUES = f"tests/unit/store/test_revisions.py {WRITER} {PIPELINE}/test_two_instances_model.py"
REWIND = f"{PIPELINE}/test_rewind.py"
BUILDER = "tests/unit/pipeline/test_batch_builder.py"
MODEL = f"{PIPELINE}/test_two_instances_model.py"
WINDOWS = "tests/unit/pipeline/test_windows.py tests/unit/pipeline/test_runs.py"
CLAIMS = "tests/integration/claims/test_claims_model.py"
SESSIONS = f"{STORE}/test_postgres_session.py"
PERMIT, RECEIVER_LEASE = "tests/integration/provider/test_permit.py", f"{STORE}/test_receiver_lease.py"
HOSTS, FAILOVER = f"{STORE}/test_postgres_hosts.py", f"{PIPELINE}/test_database_failover.py"
DIRECT_COPY = f"{STORE}/test_direct_copy.py tests/unit/store/test_copy_policy.py"
INSTANCES = f"{STORE}/test_instances.py"
REPAIR_TESTS, REPAIRS = "tests/integration/test_repair.py", f"{STORE}/test_repairs.py"


@dataclass(frozen=True, slots=True)
class Bug:
    """A text that occurs exactly once in a file of the package, its wrong replacement, and the tests to run."""

    name: str
    file: str
    right: str
    wrong: str
    tests: str


COPY = "tests/integration/test_db_copy.py"
BUGS = (
    Bug(
        "a backfill of the time that a database lost is not requested again",
        "pipeline/writer.py",
        "if event.seq <= self.status.rewound_to]",
        "if event.seq < 0]",
        REWIND,
    ),
    Bug(
        "a spool is not set back to the position of a database that went back",
        "pipeline/registrar.py",
        "while found.position < self._spool.acked and not self._rewind(found):",
        "while False:",
        REWIND,
    ),
    Bug(
        "old frames that are written again count as data that arrives",
        "pipeline/batch_builder.py",
        "            if seq > self.news_after_seq:",
        "            if True:",
        f"{REWIND} {BUILDER}",
    ),
    Bug(
        "old frames that are not plain and are written again count as data that arrives",
        "pipeline/batch_builder.py",
        " and frame.retry_of is None and seq > self.news_after_seq:",
        " and frame.retry_of is None:",
        BUILDER,
    ),
    Bug(
        "the page gets the rows that are written again",
        "pipeline/committer.py",
        "rows if batch.first_seq > upto else [row for row in rows if row.seq > upto]",
        "rows",
        REWIND,
    ),
    Bug(
        "a lost backfill that the database cannot store ends the writer, again at each start",
        "repair/worker.py",
        "except (ValueError, KeyError, BatchRejected) as error:",
        "except (ValueError, KeyError) as error:",
        "tests/integration/pipeline/test_writer.py",
    ),
    Bug(
        "a retry marks a letter of another instance that has its id now",
        "store/write/batch_writer.py",
        '        c.received_at == bindparam("received_at_"),\n',
        "",
        REWIND,
    ),
    Bug(
        "a copied spool drops what it keeps although the database lacks it",
        "pipeline/registrar.py",
        "found.ownership is Ownership.FOREIGN and found.position >= self._spool.acked",
        "found.ownership is Ownership.FOREIGN",
        REWIND,
    ),
    Bug(
        "a lag beyond what is kept counts as lost until now",
        "pipeline/registrar.py",
        "return kept_us if kept_us is not None and is_later else now_us",
        "return now_us",
        REWIND,
    ),
    Bug(
        "a copy does not end while the daemon writes a row per range",
        "store/copy/copier.py",
        "if table_access.is_full(rows) else None",
        "if rows else None",
        COPY,
    ),
    Bug(
        "the sequences of a copy start at 1",
        "store/copy/copier.py",
        "            copy_target.set_sequences(target)\n",
        "",
        COPY,
    ),
    Bug(
        "an unfinished copy is upgraded like any database",
        "store/migrate.py",
        "if revision is not None and revision.startswith(UNFINISHED_COPY):",
        "if False:",
        COPY,
    ),
    Bug(
        "a copy overwrites what a daemon has written to it",
        "store/copy/target.py",
        "return ours is None or tuple(ours) == tuple(theirs)",
        "return True",
        COPY,
    ),
    Bug(
        "a copy does not compare at its end",
        "store/copy/copier.py",
        "            if found != wanted:\n",
        "            if False:\n",
        COPY,
    ),
    Bug(
        "the daemon's spool keeps nothing of what was written",
        "daemon/factory.py",
        "Keep(config.spool.keep.time, config.spool.keep.size)",
        "Keep(0, 0)",
        "tests/acceptance/test_failover.py",
    ),
    Bug(
        "a lease counts from its answer",
        "daemon/standby.py",
        "self.held_until = None, True, asked_at + self._lease_seconds",
        "self.held_until = None, True, boottime() + self._lease_seconds",
        "tests/unit/daemon/test_standby.py",
    ),
    Bug(
        "a login does not wait for the permit",
        "provider/auth/token_source.py",
        "while not self._permit.held:",
        "while False:",
        PERMIT,
    ),
    Bug(
        "a connection is replaced without the permit",
        "provider/subscriptions/connection_group.py",
        "if not self._context.gate.permitted:",
        "if False:",
        PERMIT,
    ),
    Bug(
        "a connection is used though the permit ended while it was opened",
        "provider/subscriptions/connection_group.py",
        "        if not context.gate.is_open:\n",
        "        if False:\n",
        PERMIT,
    ),
    Bug(
        "a lease that ended between two requests goes unnoticed",
        "daemon/standby.py",
        "        self._report_expiry()  # also if the answer is that it is ours again\n",
        "",
        "tests/integration/test_standby_facts.py",
    ),
    Bug(
        "an open connection to a replaced server renews the lease",
        "store/receiver_lease.py",
        "if known != self._known_at_connect:",
        "if False:",
        RECEIVER_LEASE,
    ),
    Bug(
        "a daemon that stops while it takes the lease holds up the others",
        "store/receiver_lease.py",
        'isolation_level="AUTOCOMMIT"',
        'isolation_level="READ COMMITTED"',
        RECEIVER_LEASE,
    ),
    Bug(
        "a lease belongs to an instance whichever run writes as that",
        "store/receiver_lease.py",
        "if own_id is None or self._released:",
        "own_id = own_id or 1\n            if self._released:",
        RECEIVER_LEASE,
    ),
    Bug(
        "a daemon that stands by repairs gaps",
        "repair/worker.py",
        "        if not self._may_request():\n            return None\n",
        "",
        REPAIR_TESTS,
    ),
    Bug(
        "gaps are repaired while what they lack is written again",
        "repair/worker.py",
        "            if self._writer.status.rewound_to:",
        "            if False:",
        f"{REPAIR_TESTS}::test_repairs_wait_while_entries_are_written_again",
    ),
    Bug(
        "connections stay open when another instance receives",
        "daemon/standby.py",
        'if change == "other":',
        "if False:",
        "tests/acceptance/test_standby.py",
    ),
    Bug(
        "the life of a token counts from the end of a slow answer",
        "provider/auth/login.py",
        "lifetime_seconds, sent_at)\n\n",
        "lifetime_seconds, boottime())\n\n",
        "tests/integration/provider/test_login.py",
    ),
    Bug(
        "retention believes our clock",
        "pipeline/writer.py",
        "now_us = self._database.proven_time.now_us()",
        'now_us = __import__("time").time_ns() // 1000',
        f"{PIPELINE}/test_retention_scheduling.py",
    ),
    Bug(
        "live rows expire while the clocks run ahead",
        "store/write/batch_writer.py",
        "now_us = self.proven_time.now_us()",
        "now_us = to_us(datetime.now(UTC))",
        f"{PIPELINE}/test_retention_scheduling.py",
    ),
    Bug(
        "a lease is held until next year",
        "store/leases.py",
        "c.until.between(now, latest)",
        "c.until >= now",
        f"{STORE}/test_retention.py",
    ),
    Bug(
        "the lease holder deletes the payloads of an instance that is alive",
        "store/maintenance/retention.py",
        "_payload_tasks(forgotten_instances(connection, now), config, now)",
        "_payload_tasks(connection.execute(select(schema.instances.c.instance_id)).scalars().all(), config, now)",
        f"{STORE}/test_retention.py",
    ),
    Bug(
        "a daemon without the lease deletes what all share",
        "store/maintenance/retention.py",
        "            if leased_at is None:\n",
        "            if False:\n",
        f"{STORE}/test_retention.py",
    ),
    Bug(
        "an instance that writes a backlog is taken for dead",
        "store/instances.py",
        "(row.started_at, row.heartbeat_at, row.committed_at)",
        "(row.started_at, row.heartbeat_at)",
        INSTANCES,
    ),
    Bug(
        "an instance that stopped cleanly is reported as silent",
        "store/instances.py",
        'row.last_event == "stopped" or ',
        "",
        INSTANCES,
    ),
    Bug(
        "what another instance receives counts as not received",
        "store/read/status_queries.py",
        'wanted.state != "stopped", ~is_received',
        'wanted.state != "stopped", wanted.state != "live"',
        INSTANCES,
    ),
    Bug(
        "instances are shown as they were before the database went away",
        "daemon/instance_cache.py",
        "return self._last if boottime() - self._read_at < MAX_AGE_SECONDS else SharedStatus()",
        "return self._last",
        "tests/integration/test_instance_cache.py",
    ),
    Bug(
        "what each instance by itself did not receive counts what others covered as missing",
        "../migrations/versions/0002_views.sqlite.sql",
        "h LEFT JOIN covered c ON c.subscription_id = h.subscription_id",
        "h LEFT JOIN covered c ON c.subscription_id = h.instance_id",
        f"{STORE}/test_instance_gaps.py",
    ),
    Bug(
        "rows stamped by a clock that ran ahead hold up retention",
        "store/maintenance/retention.py",
        "if last_ahead is None or self._next_batch_expired(connection, last_ahead):",
        "if last_ahead is None:",
        f"{STORE}/test_retention.py",
    ),
    Bug(
        "payloads are deleted while the clock runs ahead",
        "store/maintenance/retention.py",
        "if last_ahead is None or self._next_batch_expired(connection, last_ahead):",
        "if expired:",
        f"{STORE}/test_retention.py",
    ),
    Bug(
        "a block of payloads is deleted when its oldest one is old",
        "store/maintenance/retention.py",
        "c.last_received_at, c.frame_count)",
        'c.received_at.label("last_received_at"), c.frame_count)',
        f"{STORE}/test_retention.py",
    ),
    Bug(
        "payloads of connections that take turns get each other's seqs",
        "store/write/payload_blocks.py",
        "if not has_defaults or seqs[-1] - seqs[0] >= frame_count:",
        "if not has_defaults:",
        f"{STORE}/test_payload_blocks.py",
    ),
    Bug(
        "readers of payloads skip a block that begins before their range",
        "store/read/payloads.py",
        "_c.first_seq >= func.coalesce(batch.scalar_subquery(), 0)",
        "_c.first_seq >= first_seq",
        f"{STORE}/test_payload_blocks.py",
    ),
    Bug(
        "a window whose newest row was restated is stored with the old one",
        "store/write/window_strips.py",
        "if not rows.startswith(known):",
        "if not known:",
        "tests/unit/store/test_window_strips.py",
    ),
    Bug(
        "the spool takes a text for a repetition that differs behind its first row",
        "spool/window_texts.py",
        "if end > start and text.startswith(base[start:end], first):",
        "if end > start:",
        "tests/unit/spool/test_window_texts.py",
    ),
    Bug(
        "a read of the spool counts windows as small as they are stored",
        "spool/chunk_store.py",
        "return items, size + unpacker.repeated_characters",
        "return items, size",
        "tests/unit/spool/test_window_texts.py",
    ),
    Bug(
        "what one write of the spool does not drop stays until the next heartbeat",
        "spool/chunk_store.py",
        " or not rows or self._has_more_to_tidy:",
        " or not rows:",
        KEEP,
    ),
    Bug("spool: no fsync", "spool/chunk_store.py", "PRAGMA synchronous=FULL", "PRAGMA synchronous=OFF", DURABILITY),
    Bug(
        "spool: synchronous=NORMAL",
        "spool/chunk_store.py",
        "PRAGMA synchronous=FULL",
        "PRAGMA synchronous=NORMAL",
        DURABILITY,
    ),
    Bug(
        "SQLite database: synchronous=NORMAL",
        "store/engine.py",
        "PRAGMA synchronous=FULL",
        "PRAGMA synchronous=NORMAL",
        DURABILITY,
    ),
    Bug(
        "PostgreSQL: commits that may be lost",
        "store/postgres_session.py",
        '[("synchronous_commit", "on", "on")] if durable',
        "[] if durable",
        DURABILITY,
    ),
    Bug(
        "data counts as received before it is synced",
        "spool/spool.py",
        "self._wait_until(lambda: self.synced >= seq)",
        "self._wait_until(lambda: self.head >= seq)",
        f"{DURABILITY} {SPOOL}",
    ),
    Bug(
        "a chunk dropped in a group commit",
        "spool/spool.py",
        "for chunk in chunks if chunk.entries]",
        "for chunk in chunks[-1:] if chunk.entries]",
        SPOOL,
    ),
    Bug(
        "seqs restart at 1 when the spool is empty",
        "spool/chunk_store.py",
        "        self._verify(self.found)\n",
        "        self.found = self.found._replace(\n"
        '            next_seq=self._db.execute("SELECT coalesce(max(last_seq), 0) + 1 FROM chunks").fetchone()[0]\n'
        "        )\n",
        SPOOL,
    ),
    Bug(
        "an outage is reported at every attempt",
        "core/outage.py",
        "if text in self._reported or len(self._reported) >= MAX_ERRORS:",
        "if len(self._reported) > MAX_ERRORS:",
        "tests/unit/core/test_outage.py tests/integration/provider/test_supervisor.py",
    ),
    Bug(
        "HTTP connections are not limited",
        "monitoring/http_listener.py",
        "for protocol in open_[: max(0, len(open_) + 1 - max_connections())]:",
        "for protocol in open_[:0]:",
        "tests/integration/monitoring/test_http_listener.py",
    ),
    Bug(
        "a lack of descriptors is not a failed attempt",
        "provider/http_client.py",
        "except (requests.RequestException, HTTPError, OSError) as error:",
        "except (requests.RequestException, HTTPError) as error:",
        "tests/integration/provider/test_without_descriptors.py",
    ),
    Bug(
        "what the provider does not read is queued without limit",
        "provider/socket/engineio_client.py",
        "if self.queue.unsent_bytes > MAX_UNSENT_BYTES:",
        "if self.queue.qsize() > 10 * MAX_UNSENT_BYTES:",
        "tests/integration/provider/test_limits.py",
    ),
    Bug(
        "attachments are awaited without limit",
        "provider/socket/engineio_client.py",
        "            self._attached_bytes += len(data)\n",
        "",
        "tests/integration/provider/test_limits.py",
    ),
    Bug(
        "attachments stay in memory after their message is stored",
        "provider/socket/engineio_client.py",
        "call_later(ATTACHMENT_SECONDS, self._on_attachments_due)",
        "call_later(ATTACHMENT_SECONDS, lambda _=self._binary_packet: self._on_attachments_due())",
        "tests/integration/provider/test_limits.py",
    ),
    Bug(
        "a server of 0.9 ends the connection with half a surrogate pair",
        "provider/socket/socketio_09_client.py",
        "decode_text=False,",
        "decode_text=True,  # type: ignore[arg-type]",
        "tests/integration/provider/test_socketio_09.py",
    ),
    Bug(
        "a quiet connection to 0.8 counts as silent between two heartbeats",
        "provider/socket/socketio_09_client.py",
        "max(heartbeat_seconds, close_seconds,",
        "max(heartbeat_seconds,",
        "tests/integration/provider/test_socketio_09.py",
    ),
    Bug(
        "a balancer's cookie is lost between handshake and websocket",
        "provider/socket/socketio_09_client.py",
        '{"Cookie": cookies} if cookies else {}',
        "{}",
        "tests/integration/provider/test_socketio_09.py",
    ),
    Bug(
        "each round of requests to 0.9 has a limit of its own",
        "provider/socket/socketio_09_client.py",
        "return self._repeat_slots if is_repeat else self._slots",
        "return asyncio.Semaphore(1 if is_repeat else 19)",
        "tests/integration/provider/test_socketio_09.py",
    ),
    Bug(
        "a repeated subscribe of a handover waits for unanswered requests",
        "provider/subscriptions/connection_group.py",
        "old.connection.resubscribe(",
        "old.connection.subscribe(",
        "tests/integration/provider/test_supervisor.py",
    ),
    Bug(
        "a removed ticker is subscribed again because it was silent",
        "provider/subscriptions/session.py",
        "for subscription in silent if subscription.key in self._sent)",
        "for subscription in silent)",
        "tests/integration/provider/test_live_change.py",
    ),
    Bug(
        "a server of 0.9 gets no heartbeats while reading pauses",
        "provider/socket/socketio_09_client.py",
        "await self._pause()",
        "await listener.wait_for_space()",
        "tests/integration/provider/test_socketio_09.py",
    ),
    Bug(
        "a server of 0.9 gets no origin",
        "provider/socket/socketio_09_client.py",
        '{"Origin": f"{root.scheme}://{root.netloc}"}',
        "dict[str, str]()",
        "tests/integration/provider/test_socketio_09.py",
    ),
    Bug(
        "each request to reload is a reload",
        "daemon/reload.py",
        "        if self._waiting is None:\n",
        "        if True:\n",
        "tests/unit/daemon/test_reload.py",
    ),
    Bug(
        "a full spool takes facts without limit",
        "daemon/fact_limit.py",
        "if now >= self._limited_until:",
        "if True:",
        "tests/unit/daemon/test_fact_limit.py",
    ),
    Bug(
        "a full spool drops backfills that were requested",
        "daemon/fact_limit.py",
        '"lost", BACKFILL_REQUESTED}',
        '"lost"}',
        "tests/unit/daemon/test_fact_limit.py",
    ),
    Bug(
        "a full spool drops the changes of a state",
        "daemon/fact_limit.py",
        "is_news = fact.state is None and fact.since_us is None",
        "is_news = fact.since_us is None",
        "tests/unit/daemon/test_fact_limit.py",
    ),
    Bug(
        "a heartbeat covers entries that are not synced",
        "spool/spool.py",
        "self._hand_over()\n        self._queue.put(SpoolHeartbeat",
        "self._queue.put(SpoolHeartbeat",
        SPOOL,
    ),
    Bug(
        "a partly committed chunk is acknowledged whole",
        "spool/chunk_store.py",
        "                if last_seq > upto_seq:\n                    return\n",
        "",
        SPOOL,
    ),
    Bug(
        "an entry synced during the first_seq query counts as deleted",
        "spool/spool.py",
        "self._reader.first_seq() or synced + 1",
        "self._reader.first_seq() or self.synced + 1",
        SPOOL,
    ),
    Bug(
        "acknowledged entries are written again",
        "spool/spool.py",
        "self.acked if self._keep.nothing else",
        "0 if self._keep.nothing else",
        WRITER,
    ),
    Bug(
        "a full disk takes rewound entries",
        "spool/chunk_store.py",
        "self._drop_oldest(acknowledged, acknowledged.acked, ",
        "self._drop_oldest(acknowledged, acknowledged.highest_acked, ",
        KEEP,
    ),
    Bug(
        "rewound entries count as live",
        "spool/chunk_store.py",
        "self._sum_sizes(header.highest_acked, highest_acked)",
        "passed_bytes",
        KEEP,
    ),
    Bug(
        "the age counts from the first acknowledgement",
        "spool/chunk_store.py",
        "                self._ack_times.rewind(position)\n",
        "",
        KEEP,
    ),
    Bug(
        "unproven down time makes entries older",
        "spool/keep.py",
        'last.boot_id == boot_id != "" and ',
        "",
        KEEP,
    ),
    Bug(
        "a file that cannot shrink drops all that it keeps when the disk is low",
        "spool/spool.py",
        "return self._file.can_shrink and self._give_back()",
        "return self._give_back()",
        "tests/integration/spool/test_keep.py",
    ),
    Bug(
        "the ballast goes before what is kept",
        "spool/spool.py",
        "        if self._give_back():\n            return\n        self.disk_full = True\n",
        "        self.disk_full = True\n",
        KEEP,
    ),
    Bug(
        "kept space is not given back before the disk is full",
        "spool/spool.py",
        "            self._relieve_disk()\n",
        "            pass\n",
        KEEP,
    ),
    Bug(
        "what first_seq has named is dropped",
        "spool/spool.py",
        "held_from=self._held_from, **changes",
        "held_from=sys.maxsize, **changes",
        KEEP,
    ),
    Bug(
        "a run that the database may name is forgotten",
        "spool/header.py",
        "(KNOWN_RUNS, _lowest_position(db, header))",
        "(KNOWN_RUNS, header.acked)",
        KEEP,
    ),
    Bug(
        "a spool of a newer release is set aside",
        "spool/header.py",
        "    if found > FORMAT:\n",
        "    if found > FORMAT + 100:\n",
        f"{SPOOL_FOLDER}/test_spool.py",
    ),
    Bug(
        "a compressed chunk counts as small in memory",
        "spool/chunk_store.py",
        "size += chunk_size",
        "size += row[2]",
        KEEP,
    ),
    Bug(
        "missing spool entries are skipped",
        "pipeline/read_ahead.py",
        "if not _follow(after_seq, items) or not items:",
        "if not items:",
        WRITER,
    ),
    Bug(
        "entries are acknowledged before they are committed",
        "pipeline/writer.py",
        "            self._committer.commit(builder)\n",
        "            self._spool.ack(builder.batch.last_seq)\n            self._committer.commit(builder)\n",
        DURABILITY,
    ),
    Bug(
        "heartbeat is published before everything is committed",
        "pipeline/writer.py",
        "if heartbeat and heartbeat.seq <= self.status.position and",
        "if heartbeat and",
        WRITER,
    ),
    Bug(
        "dedup cache is kept after a failed commit",
        "pipeline/committer.py",
        "        except BaseException:\n            self._read_ahead.invalidate()\n            raise\n",
        "        except BaseException:\n            raise\n",
        WRITER,
    ),
    Bug(
        "a value that is not current stays in the dedup cache",
        "pipeline/read_ahead.py",
        "            self._cache.discard(not_current)\n",
        "            pass\n",
        MODEL,
    ),
    Bug(
        "next batch is written although the one before it failed",
        "pipeline/read_ahead.py",
        "        if self.next_batch is not None:\n            self._unbatched",
        "        if False:\n            self._unbatched",
        MODEL,
    ),
    Bug(
        "next batch relies on values that are not current",
        "pipeline/read_ahead.py",
        "if not_current and self.next_batch is not None:",
        "if False:",
        MODEL,
    ),
    Bug(
        "a partial batch is lost when the spool fails",
        "pipeline/read_ahead.py",
        "                if not builder.items:\n                    raise\n",
        "                raise\n",
        WRITER,
    ),
    Bug(
        "the process cannot exit while a statement hangs",
        "core/threads.py",
        "self._run, name=name, daemon=True",
        "self._run, name=name, daemon=False",
        "tests/unit/core/test_daemon_executor.py",
    ),
    Bug(
        "a connection that fails while rows are isolated is kept",
        "store/engine.py",
        "if is_translated or (",
        "if (",
        f"{STORE}/test_write_failures.py",
    ),
    Bug(
        "timestamps are computed as doubles",
        "store/write/postgres_sql.py",
        "{0} / 1000000 * interval '1 second' + {0} %% 1000000 * interval '1 microsecond'",
        "{0} * interval '1 microsecond'",
        f"{PIPELINE}/test_hostile_payloads.py",
    ),
    Bug(
        "a batch with rows that are there is copied again and again",
        "store/write/batch_writer.py",
        "            self._copy_policy.note_failed()\n",
        "",
        DIRECT_COPY,
    ),
    Bug(
        "rows are inserted in the order of receipt, so that two daemons deadlock",
        "store/write/sample_writer.py",
        "sorted(self._rows.first)",
        "list(self._rows.first)",
        DIRECT_COPY,
    ),
    Bug(
        "dedup removes repetitions that another instance made relevant",
        "store/write/sample_writer.py",
        "if self._is_deduplicated and counts.not_current:",
        "if False:",
        MODEL,
    ),
    Bug(
        "position without compare-and-set",
        "store/write/batch_writer.py",
        "AND position BETWEEN %s AND %s",
        "AND position + %s + %s >= 0",
        f"{STORE}/test_position.py",
    ),
    Bug(
        "a batch is committed although entries before it are missing",
        "store/write/batch_writer.py",
        "before if gapless else 0, before",
        "0, before",
        f"{STORE}/test_position.py",
    ),
    Bug(
        "ids of a rolled back transaction are kept",
        "store/write/interning.py",
        "                    found |= self._select(connection, new)\n",
        "                    found |= self._select(connection, new)\n                    self._ids |= found\n",
        "tests/unit/store/test_interning.py",
    ),
    Bug(
        "a late value becomes current",
        "store/write/revisions.py",
        "return (self.received_us, self.instance_id, self.seq) >= (other.received_us, other.instance_id, other.seq)",
        "return True",
        VALUES,
    ),
    Bug(
        "the first of several values in a batch is kept",
        "store/write/revisions.py",
        "            restated.add(key)\n",
        "            pass\n",
        VALUES,
    ),
    Bug(
        "a value repeated in a batch is dropped",
        "store/write/revisions.py",
        "        repeats.setdefault(key, []).append(row)\n        if first_row.value != row.value:\n",
        "        if first_row.value != row.value:\n            repeats.setdefault(key, []).append(row)\n",
        VALUES,
    ),
    Bug(
        "restated values are not detected",
        "store/write/sample_writer.py",
        "if new < len(rows):",
        "if False:",
        f"{WRITER} {MODEL}",
    ),
    Bug(
        "an outage makes rows dead letters",
        "store/engine.py",
        "    return DatabaseUnavailable(*failures.describe(error))",
        "    return BatchRejected(failures.one_line(error))",
        f"{STORE}/test_write_failures.py",
    ),
    Bug(
        "an entry is skipped when the database rejects dead letters",
        "pipeline/committer.py",
        "raise DatabaseUnavailable(message) from None",
        "self._status.error = str(error)",
        WRITER,
    ),
    Bug(
        "rows become dead letters although the database is unwell",
        "store/write/sample_writer.py",
        "        self._require_healthy_database()\n",
        "",
        f"{STORE}/test_write_failures.py",
    ),
    Bug(
        "a request that is over leaves its thread to the server",
        "provider/http_client.py",
        "                sock.shutdown(SHUT_RDWR)",
        "                pass",
        "tests/integration/provider/test_login.py",
    ),
    Bug(
        "a bad row rejects its whole batch",
        "store/write/bisection.py",
        "        if len(items) == 1:\n            reject(items[0], error)\n            return\n",
        "        if items:\n            for item in items:\n                reject(item, error)\n            return\n",
        f"{WRITER} {STORE}/test_write_failures.py",
    ),
    Bug(
        "compaction merges uncovered rows",
        "store/maintenance/coverage_compaction.py",
        "following > 0 and bool(row.ended_at <= covered[following - 1][1])",
        "following > 0",
        f"{STORE}/test_coverage_compaction.py",
    ),
    Bug(
        "coverage is live until the loss was noticed",
        "provider/subscriptions/connection_group.py",
        'self._set_all(event, connection.last_activity_at, "disconnected", **detail)',
        'self._set_all(event, boottime(), "disconnected", **detail)',
        "tests/integration/provider/test_supervisor.py",
    ),
    Bug(
        "a handover proves that the old connection was alive",
        "provider/subscriptions/state_tracker.py",
        "session.acknowledged.get(key, math.inf) > heard_at]",
        "session.acknowledged.get(key, math.inf) == math.inf]",
        "tests/unit/provider/test_state_tracker.py",
    ),
    Bug(
        "coverage goes on by the old clock after the clock was set back",
        "store/write/coverage_intervals.py",
        "self._begin(previous, transition.seq, transition.since_us)",
        "self._begin(previous, transition.seq, until_us)",
        "tests/unit/store/test_coverage_intervals.py",
    ),
    Bug(
        "after a kill, all is live up to the last heartbeat",
        "daemon/heartbeat.py",
        "supervisor.heard_us(now))",
        "{})",
        "tests/integration/test_coverage_claims.py",
    ),
    Bug(
        "a pause in reading is a sign of life",
        "provider/socket/connection.py",
        "self._heard_before_pause_at = self.last_activity_at",
        "self._heard_before_pause_at = boottime()",
        "tests/integration/provider/test_connection.py",
    ),
    Bug(
        "a clock that was set while the daemon was down is not noticed",
        "daemon/factory.py",
        "if abs(step_seconds) < MIN_STEP_SECONDS:",
        "if True:",
        "tests/unit/daemon/test_factory.py tests/integration/test_coverage_claims.py",
    ),
    Bug(
        "a quiet old connection is not asked for a sign of life",
        "provider/subscriptions/connection_group.py",
        "            await self._await_sign_of_life(old, new)\n",
        "            pass\n",
        "tests/integration/provider/test_supervisor.py",
    ),
    Bug(
        "compaction believes what the same instance contradicts",
        "store/maintenance/coverage_compaction.py",
        ".where(i.stepped_back, ",
        ".where(c.instance_id < 0, ",
        f"{STORE}/test_coverage_compaction.py",
    ),
    Bug(
        "silent while the writer is behind",
        "provider/subscriptions/supervisor.py",
        "if upto_seq >= mark_seq:",
        "if True:",
        "tests/integration/provider/test_silence.py",
    ),
    Bug(
        "a silence counts from when it was noticed",
        "provider/subscriptions/state_tracker.py",
        'self._apply("no_data", keys, now, since_us, ',
        'self._apply("no_data", keys, now, None, ',
        "tests/integration/provider/test_silence.py",
    ),
    Bug(
        "a config change does not reach the replacement connection",
        "provider/subscriptions/connection_group.py",
        "for session in self._sessions:\n            session.add(subscriptions)",
        "if session := self.tracker.session:\n            session.add(subscriptions)",
        "tests/integration/provider/test_live_change.py",
    ),
    Bug(
        "an interval may end before it began",
        "store/write/coverage_intervals.py",
        "max(started_us, previous.started_us)",
        "started_us",
        "tests/unit/store/test_coverage_intervals.py",
    ),
    Bug(
        "infinite values go to the database",
        "pipeline/decoder.py",
        "if not math.isfinite(number):",
        "if False:",
        f"{PIPELINE}/test_hostile_payloads.py",
    ),
    Bug(
        "plain rows: a number may be of any length",
        "pipeline/plain_rows.py",
        "if len(body) > NUMBER_CHARACTERS and not is_short(body):",
        "if False:",
        "tests/unit/pipeline/test_plain_rows.py",
    ),
    Bug(
        "plain rows: a time is put together from parts that are out of range as a whole",
        "pipeline/plain_rows.py",
        "if not DAY_US <= us <= self._latest_us - 2 * DAY_US:",
        "if False:",
        "tests/unit/pipeline/test_plain_rows.py",
    ),
    Bug(
        "NUL in names goes to the database",
        "pipeline/decoder.py",
        'return "\\0" in text or (',
        "return (",
        f"{PIPELINE}/test_hostile_payloads.py",
    ),
    Bug(
        "the cache of interned names is not bounded",
        "store/write/interning.py",
        "if len(self._ids) + count > self._capacity:",
        "if False:",
        f"{PIPELINE}/test_resource_bounds.py",
    ),
    Bug(
        "the audit overlooks a missing batch",
        "store/read/audit.py",
        "samples_pruned)]\n",
        "samples_pruned)][1:]\n",
        f"{STORE}/test_audit.py",
    ),
    Bug(
        "a known value outlives its connection",
        "pipeline/batch_builder.py",
        "read_new(reader, body, run.connection_id)",
        'read_new(reader, body, "")',
        f"{WRITER} {MODEL}",
    ),
    Bug(
        "a value of another connection is not forgotten when it is restated",
        "pipeline/dedup.py",
        "            if is_shared:\n                self._discard_others(series, ts_us, value)\n",
        "",
        f"tests/unit/pipeline/test_dedup.py {MODEL}",
    ),
    Bug(
        "windows: rows are known although a value of them is not",
        "pipeline/dedup.py",
        "            self.window.forget()\n",
        "",
        WINDOWS,
    ),
    Bug(
        "windows: a value may be repeated within a response",
        "pipeline/windows.py",
        "if other is not series or ts_us <= after_us:",
        "if other is not series:",
        WINDOWS,
    ),
    Bug(
        "windows: a brace in a name begins a row",
        "pipeline/windows.py",
        'return body.count("{") == len(values)',
        "return True",
        WINDOWS,
    ),
    Bug(
        "windows: a comma at the end is valid",
        "pipeline/windows.py",
        "if not values or not are_window(",
        "if values is None or not are_window(",
        WINDOWS,
    ),
    Bug(
        "any data counts for the only subscription",
        "provider/subscriptions/state_tracker.py",
        "key: ((path, params, subscription.ticker), *unnamed) for",
        'key: ((path, params, "" if unnamed else subscription.ticker), *unnamed) for',
        "tests/unit/provider/test_state_tracker.py tests/integration/provider/test_silence.py",
    ),
    Bug(
        "data of another feed or user counts",
        "pipeline/batch_builder.py",
        'if user_id in ("", series[3]):',
        "if True:",
        "tests/unit/pipeline/test_batch_builder.py",
    ),
    Bug(
        "any text that Python takes for a time is one",
        "core/times.py",
        "    if not _TIME.fullmatch(text):\n",
        "    if not text:\n",
        "tests/unit/pipeline/test_strict_times.py",
    ),
    Bug(
        "a negative zero keeps its sign",
        "pipeline/decoder.py",
        "return number + 0.0",
        "return number",
        f"tests/unit/pipeline/test_decoder.py {PIPELINE}/test_hostile_payloads.py",
    ),
    Bug(
        "repair: done before it is committed",
        "repair/worker.py",
        "self._in_writer(lambda _: None, after_seq=seq)",
        "self._in_writer(lambda _: None)",
        f"{REPAIR_TESTS}::test_failed_repair_has_reason_and_succeeds_when_repeated",
    ),
    Bug(
        "repair: a response counts as received when it arrives",
        "provider/rest_api.py",
        "result = RestResponse(text=_decode_body(request, response), sent_us=sent_us)",
        "result = RestResponse(text=_decode_body(request, response), sent_us=wall_us())",
        f"{REPAIR_TESTS}::test_snapshot_repairs_gap_and_newer_values_stay_current",
    ),
    Bug(
        "repair: a window that begins after the gap's start proves it",
        "repair/verification.py",
        "<= ts_us <= start for",
        "<= ts_us for",
        "tests/unit/repair/test_verification.py",
    ),
    Bug(
        "repair: a window that ends before the gap's end proves it",
        "repair/window_scan.py",
        "covers_start(decoded, repair, received_us) and covers_end(decoded, repair, received_us)",
        "covers_start(decoded, repair, received_us)",
        REPAIRS,
    ),
    Bug(
        "repair: a snapshot that ends before the gap's end proves it",
        "repair/worker.py",
        "elif not verification.covers_end(decoded, repair, sent_us):",
        "elif False:",
        f"{REPAIR_TESTS}::test_snapshot_repairs_gap_and_newer_values_stay_current",
    ),
    Bug(
        "repair: history that ends before the gap's end proves it",
        "repair/worker.py",
        "            self._prove_quiet(repair, query, min(gap_end, query.end))\n",
        "            pass\n",
        f"{REPAIR_TESTS}::test_gap_stays_open_until_history_has_a_later_row",
    ),
    Bug(
        "repair: a response from within the gap proves it",
        "repair/window_scan.py",
        "if payload.received_at >= repair.to_ts]",
        "if payload]",
        REPAIRS,
    ),
    Bug(
        "repair: an instance without the lease writes",
        "store/maintenance/repairs.py",
        "is None:\n                raise LeaseHeldElsewhere",
        "is None:\n                pass",
        REPAIRS,
    ),
    Bug(
        "repair: the cursor is not stored",
        "store/maintenance/repairs.py",
        "[repair_id], cursor=cursor, error",
        "[repair_id], error",
        "tests/acceptance/test_backfill.py",
    ),
    Bug(
        "repair: gaps that have not ended are repaired",
        "store/maintenance/repairs.py",
        ".where(or_(gaps.to_at < wanted.to_at, ~still_wanted.exists(), live_again.exists()), ~has_repair.exists())",
        ".where(~has_repair.exists())",
        REPAIRS,
    ),
    Bug(
        "repair: a failed repair becomes done",
        "store/maintenance/repairs.py",
        'c.repair_id == bindparam("id_"), c.state == "open")',
        'c.repair_id == bindparam("id_"))',
        REPAIRS,
    ),
    Bug(
        "PostgreSQL: values are rounded if somebody set it so",
        "store/postgres_session.py",
        '    "extra_float_digits": "3",',
        "   ",
        SESSIONS,
    ),
    Bug(
        "PostgreSQL: the URL's parameters are replaced by ours",
        "store/postgres_session.py",
        "return _PARAMETERS | (defaults if is_cluster else {}) | written",
        'return written | _PARAMETERS | {"options": ""}',
        SESSIONS,
    ),
    Bug(
        "PostgreSQL: of several hosts in the URL only the last one is used",
        "store/postgres_session.py",
        "[2]) | find_hosts(url)",
        "[2])",
        SESSIONS,
    ),
    Bug(
        "PostgreSQL: with several hosts, a standby will do",
        "store/postgres_session.py",
        '("PGTARGETSESSIONATTRS", "read-write")',
        '("PGTARGETSESSIONATTRS", "any")',
        f"{SESSIONS} -k several_hosts",
    ),
    Bug(
        "PostgreSQL: a host that drops packets eats the time",
        "store/postgres_session.py",
        '("PGCONNECT_TIMEOUT", "4")',
        '("PGCONNECT_TIMEOUT", "10")',
        f"{HOSTS} -k drops_packets",
    ),
    Bug(
        "PostgreSQL: a cancelled wait for a standby counts as replicated",
        "store/engine.py",
        "    if warnings:\n",
        "    if False:\n",
        f"{HOSTS} {FAILOVER}",
    ),
    Bug(
        "PostgreSQL: nothing is said of a COMMIT that waits",
        "store/transaction_watchdog.py",
        "if commit.started_at < deadline and not commit.is_reported:",
        "if False:",
        f"{HOSTS} {FAILOVER}",
    ),
    Bug(
        "PostgreSQL: a primary that was replaced is written to",
        "store/server_identity.py",
        "or found.timeline >= known[1]:",
        "or found.timeline >= 0:",
        f"{HOSTS} {FAILOVER}",
    ),
    Bug(
        "PostgreSQL: a replaced primary hides the hosts behind it",
        "store/postgres_hosts.py",
        "except (Error, _ServerReplaced) as error:",
        "except Error as error:",
        f"{HOSTS} {FAILOVER}",
    ),
    Bug(
        "PostgreSQL: the server that was written to is forgotten",
        "pipeline/registrar.py",
        "spool.note_server(*found.server)",
        "pass",
        FAILOVER,
    ),
    Bug(
        "the values of a database URL's options are shown",
        "config/urls.py",
        "_SHOWN_VALUE.fullmatch(value) else '***'",
        "_SHOWN_VALUE.fullmatch(value) else value",
        "tests/unit/config/test_urls.py",
    ),
    Bug(
        "PostgreSQL: a session that became read-only is kept",
        "store/engine.py",
        "context.is_disconnect = True",
        "pass",
        SESSIONS,
    ),
    Bug(
        "PostgreSQL: a pooler in transaction mode is accepted",
        "store/postgres_session.py",
        "return other_pid == backend_pid or {_read_backend_pid(connection) for _ in range(2)} != {backend_pid}",
        "return False",
        POOLER,
    ),
    Bug(
        "PostgreSQL: a pooler in transaction mode is accepted if two servers take turns",
        "store/postgres_session.py",
        "for _ in range(2)} != {backend_pid}",
        "for _ in range(1)} != {backend_pid}",
        POOLER,
    ),
    Bug(
        "PostgreSQL: a pooler in statement mode counts as a server that is away",
        "store/postgres_session.py",
        'if "statement pooling" not in str(error):',
        "if True:",
        POOLER,
    ),
    Bug(
        "PostgreSQL: prepared statements that a pooler has kept are in the way",
        "store/postgres_session.py",
        'connection.execute("DEALLOCATE ALL")',
        'connection.execute("SELECT 1")',
        POOLER,
    ),
    Bug(
        "PostgreSQL: COPY gets characters that the database reads otherwise",
        "store/write/postgres_sql.py",
        "if not is_utf8(connection):",
        "if False:",
        SESSIONS,
    ),
    Bug(
        "database: every failure is said to be a server that cannot be reached",
        "store/failures.py",
        "        return _by_state(state)\n    return",
        "        return _UNREACHABLE\n    return",
        SESSIONS,
    ),
    Bug(
        "migrations: new tables come into another schema",
        "store/migrate.py",
        "            connection.exec_driver_sql(_STAY_IN_SCHEMA)\n",
        "",
        f"{STORE}/test_migrations.py",
    ),
    Bug(
        "coverage: a reason that the encoding lacks costs a transition",
        "pipeline/committer.py",
        "if self._commit_in_ascii(entry):",
        "if False:",
        WRITER,
    ),
    Bug(
        "an unsupported database is retried for ever from the first start on",
        "pipeline/committer.py",
        "isinstance(error, DatabaseUnsupported) and is_first",
        "False",
        "tests/unit/pipeline/test_database_retry.py",
    ),
    Bug(
        "SQLite database: SQLAlchemy reads the path as a URL",
        "store/engine.py",
        "Path(url.removeprefix(SQLITE)) if",
        "Path(url.removeprefix(SQLITE).partition('?')[0]) if",
        "tests/integration/test_file_names.py",
    ),
    Bug(
        "control socket: any number of clients",
        "daemon/control_socket.py",
        "if len(clients) > MAX_CLIENTS:",
        "if not clients:",
        "tests/integration/test_control.py",
    ),
    Bug(
        "control socket: waits for a client that does not read",
        "daemon/control_socket.py",
        "await asyncio.wait_for(writer.wait_closed(), REQUEST_TIMEOUT_SECONDS)",
        "await writer.wait_closed()",
        "tests/integration/test_control.py",
    ),
    Bug(
        "salvage: pages that were never committed are read",
        "spool/salvage.py",
        "while frames and not frames[-1].is_commit:",
        "while False:",
        "tests/unit/spool/test_salvage.py",
    ),
    Bug(
        "salvage: entries that were written before are written again",
        "commands/salvage.py",
        "self._origin.position if self._origin else 0",
        "0 if self._origin else 0",
        "tests/integration/test_salvage.py",
    ),
    Bug(
        "salvage: a folder that is no spool may be deleted",
        "commands/salvage.py",
        "    if not spool.recognized:\n",
        "    if spool is None:\n",
        "tests/integration/test_salvage.py",
    ),
    Bug(
        "check takes a database for writable that is not",
        "commands/check.py",
        "            migrate.verify_write_access(engine)\n",
        "            pass\n",
        SESSIONS,
    ),
    Bug(
        "salvage: its facts claim coverage",
        "commands/salvage.py",
        "return Fact(item.kind, item.at_us, item.detail) if isinstance(item, Fact) else item",
        "return item",
        "tests/integration/test_salvage.py",
    ),
    Bug(
        "command line: closed descriptors are left to the next file",
        "cli/standard_streams.py",
        "if not _is_open(number)]",
        "if _is_open(number) is None]",
        "tests/acceptance/test_standard_streams.py",
    ),
    Bug(
        "a deleted SQLite file is written to",
        "store/sqlite_file.py",
        '    event.listen(engine, "checkout", partial(_verify, warn))\n',
        "",
        f"{STORE}/test_sqlite_file.py",
    ),
    Bug(
        "a kill counts as a clean end",
        "spool/spool.py",
        "self.crashed = not header.clean",
        "self.crashed = False",
        LOST_SPOOL,
    ),
    Bug(
        "a spool that lost its last run goes on silently",
        "spool/spool.py",
        "if mark.run_id not in self._file.left_by:",
        "if not mark.run_id:",
        LOST_SPOOL,
    ),
    Bug(
        "entries behind a damage of the WAL are overwritten",
        "spool/spool.py",
        "        if newest > head:\n",
        "        if newest < head:\n",
        LOST_SPOOL,
    ),
    Bug(
        "a spool that lost its newest entries goes on silently",
        "spool/spool.py",
        "if opened_head < mark.seq:",
        "if mark.seq < 0:",
        LOST_SPOOL,
    ),
    Bug(
        "a spool forgets the run that the database knows",
        "spool/header.py",
        "WHERE opened_head < ?)",
        "WHERE ? IS NOT NULL)",
        f"{PIPELINE}/test_identity.py",
    ),
    Bug(
        "each path to a SQLite file has a lock of its own",
        "daemon/factory.py",
        "Path(os.path.realpath(path))",
        "path.absolute()",
        "tests/integration/test_locks.py",
    ),
    Bug(
        "a hard link is taken for a file of our own",
        "core/files.py",
        "if found.st_nlink > 1:",
        "if found.st_nlink > 9:",
        "tests/integration/test_locks.py",
    ),
    Bug(
        "the spool writes into deleted files",
        "spool/spool.py",
        "if is_missing(path) or identity(path) != opened:",
        "if not opened:",
        "tests/integration/test_locks.py",
    ),
    Bug(
        "an instance is taken over from any run",
        "store/write/registration.py",
        "is_known = row.run_id == run_id or extent.knows_run(row.run_id)",
        "is_known = True",
        f"{PIPELINE}/test_identity.py",
    ),
    Bug(
        "a run that was replaced goes on writing",
        "store/write/batch_writer.py",
        "AND run_id = %s AND",
        "AND run_id >= substr(%s, 1, 0) AND",
        f"{PIPELINE}/test_identity.py {MODEL}",
    ),
    Bug(
        "ids learnt over a lost connection are used",
        "store/write/batch_writer.py",
        "if connection.connection.driver_connection is not self._registered_over:",
        "if False:",
        f"{PIPELINE}/test_database_replaced.py",
    ),
    Bug(
        "a heartbeat is published whatever the position",
        "store/write/batch_writer.py",
        "unmoved = (self._own_row(), schema.instances.c.position == self._position)",
        "unmoved = (self._own_row(),)",
        f"{PIPELINE}/test_database_replaced.py",
    ),
    Bug(
        "a repair is finished under an id of another database",
        "repair/worker.py",
        "                raise DatabaseReplaced\n",
        "                pass\n",
        REPAIR_TESTS,
    ),
    Bug(
        "the position is compared with a head that has grown since the copy",
        "store/write/registration.py",
        "extent.newest_seq if left is None else min(left, extent.newest_seq)",
        "extent.newest_seq",
        f"{PIPELINE}/test_identity.py",
    ),
    Bug(
        "after a failure, a clock that is set back ends every connection",
        "store/engine.py",
        "context.invalidate_pool_on_disconnect = False",
        "pass",
        f"{STORE}/test_write_failures.py",
    ),
    Bug(
        "the heartbeat of a clock that was set back goes on",
        "store/write/coverage_intervals.py",
        "case((heartbeat_at > to_at, to_at), else_=heartbeat_at)",
        "heartbeat_at",
        f"{WRITER} {CLAIMS}",
    ),
    Bug(
        "an instance that begins late claims what came before",
        "store/write/batch_writer.py",
        "self._not_before_us = batch.first_us",
        "self._not_before_us = None",
        WRITER,
    ),
    Bug(
        "what is read after a pause is a sign of life",
        "provider/socket/connection.py",
        "return self._heard_before_pause_at if self._read_at < self._resumed_at + BACKLOG_SECONDS else self._came_at",
        "return self._came_at",
        "tests/integration/provider/test_connection.py",
    ),
    Bug(
        "a fact overtakes the frames that came before it in the same pass",
        "spool/spool.py",
        "            self._end_runs()  # their frames came before\n",
        "",
        SPOOL,
    ),
    Bug(
        "a heartbeat claims the frames of runs that are not appended yet",
        "spool/spool.py",
        "        self._end_runs()\n        self._hand_over()\n        self._queue.put(SpoolHeartbeat",
        "        self._hand_over()\n        self._queue.put(SpoolHeartbeat",
        SPOOL,
    ),
    Bug(
        "a resting loop sleeps past its timers",
        "daemon/resting_selector.py",
        "min(self.rest_seconds, timer_at - self._came_at)",
        "min(self.rest_seconds, math.inf)",
        "tests/integration/test_resting_selector.py",
    ),
    Bug(
        "what waited in its socket while the loop rested counts as heard at the end of the rest",
        "daemon/resting_selector.py",
        "            self._looked_at = boottime()\n",
        "            self._looked_at = self._came_at = boottime()\n",
        "tests/integration/test_resting_selector.py",
    ),
    Bug(
        "a response that arrives long after its request counts as known before",
        "provider/rest_api.py",
        "if wall_us() - sent_us > REQUEST_SECONDS * 1_000_000:",
        "if False:",
        "tests/integration/provider/test_rest_api.py",
    ),
    Bug(
        "a batch notes the ts of its first and last series only",
        "store/write/ts_ranges.py",
        "min(times_us), max(times_us)",
        "times_us[0], times_us[-1]",
        "tests/unit/store/test_ts_ranges.py",
    ),
    Bug(
        "a compacted ledger keeps the note of its first batch",
        "store/maintenance/retention.py",
        "        sums |= dict.fromkeys(schema.LEDGER_RANGES)",
        "        pass",
        f"{STORE}/test_changes.py",
    ),
    Bug(
        "the cursor of changes goes back with the database",
        "store/read/changes.py",
        "SELECT spool_id, MAX(position) AS position",
        "SELECT spool_id, MIN(position) AS position",
        f"{STORE}/test_changes.py",
    ),
)


def main(words: Iterable[str]) -> int:
    chosen = [bug for bug in BUGS if not words or any(word in f"{bug.file} {bug.name}" for word in words)]
    survivors = 0
    with tempfile.TemporaryDirectory(prefix="seeded-") as folder:
        clone = Path(folder) / "clone"
        subprocess.run(["git", "clone", "-q", TOP, clone], check=True)
        failed, seconds = _run(
            clone, " ".join(dict.fromkeys(" ".join(bug.tests for bug in chosen).split())), SOUND_LIMIT_SECONDS
        )
        if failed:
            print(f"{failed} fails without a seeded bug; fix it first.")
            return 1
        print(f"| bug | noticed by | seconds |\n|---|---|---|\n| none | no test, as expected | {seconds:.0f} |")
        for bug in chosen:
            with _seeded(clone / "ingestor" / bug.file, bug):
                noticed, seconds = _run(clone, bug.tests)
            survivors += not noticed
            print(f"| {bug.name} | {noticed or '**no test**'} | {seconds:.0f} |", flush=True)
    print(f"\n{len(chosen) - survivors} of {len(chosen)} noticed.")
    return 1 if survivors else 0


@contextmanager
def _seeded(path: Path, bug: Bug) -> Iterator[None]:
    sound = path.read_text()
    if sound.count(bug.right) != 1:
        raise SystemExit(f"{bug.name}: {path.name} contains its text {sound.count(bug.right)} times instead of once")
    path.write_text(sound.replace(bug.right, bug.wrong))
    try:
        yield
    finally:
        path.write_text(sound)


def _run(clone: Path, tests: str, limit_seconds: float = LIMIT_SECONDS) -> tuple[str, float]:
    """Return the first test that fails (empty if none does), and the seconds until then."""
    started = time.monotonic()
    # The current folder comes first on the path, so the clone is tested instead of the installed package.
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-m", "not slow", "-p", "no:cacheprovider", *tests.split()]
    try:
        done = subprocess.run(command, cwd=clone, capture_output=True, text=True, timeout=limit_seconds, check=False)
    except subprocess.TimeoutExpired:
        return "timeout", time.monotonic() - started
    seconds = time.monotonic() - started
    if done.returncode == 0:
        return "", seconds
    failed = re.search(r"^(?:FAILED|ERROR) [^:]*/(.+?)(?: - .*)?$", done.stdout, re.MULTILINE)
    if not failed:
        raise SystemExit(f"pytest ended with {done.returncode} and no failed test:\n{done.stdout}{done.stderr}")
    return failed[1].replace("|", "\\|"), seconds


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.tools.seeded_bugs", description=__doc__)
    parser.add_argument("words", nargs="*", metavar="WORD")
    sys.exit(main(parser.parse_args().words))
