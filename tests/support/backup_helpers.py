"""What test_backup and other tests share."""

import abathur_nb as nb
from abathur_nb.backups.manifest import Backup, Content, list_backups
from abathur_nb.backups.taking import read_content
from abathur_nb.config.settings import Settings
from abathur_nb.store.connection import connect

ADD = "INSERT INTO memory_entries (namespace, key, value, memory_type) VALUES ('user:a', ?, '{}', 'semantic')"


async def content_of(settings: Settings) -> Content:
    async with connect(settings.db_path, settings.busy_timeout_ms) as conn:
        await conn.execute_fetchall("BEGIN")
        return await read_content(conn)


async def taken(settings: Settings, reason: str = "manual", *, compress: bool = False) -> Backup:
    (await nb.backup_database(settings, reason=reason, compress=compress)).raise_for_failures()
    return list_backups(settings.backup_dir)[0][-1]
