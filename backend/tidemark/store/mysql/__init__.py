"""The store on MySQL and MariaDB, whose driver is an extra: Unfit without it."""

from tidemark.store.base import Unfit

try:
    from .store import MysqlStore
except ImportError as error:
    raise Unfit(f"MySQL and MariaDB need their driver, install tidemark[mysql] ({error})") from error

__all__ = ["MysqlStore"]
