"""The tutorial's `user_crud`."""

from __future__ import annotations

from fastrdb import FastRDB
from fastrdb.demo.models import User
from fastrdb.demo.schemas import UserCreate, UserResponse, UserUpdate

user_crud = FastRDB[User, UserCreate, UserUpdate, UserResponse](
    User,
    UserResponse,
    pattern="user:email:{email}",
    list_pattern="user:page:{page}:limit:{limit}",
    exp=6000,
)
