--- A server's keys: which ones it shows to its clients, and whose let them in. Both are files, which can be read again while it serves.
-- Knows nothing of connections.
-- @module korv.credentials

local core = require "korv.core"
local keyoptions = require "korv.keyoptions"
local keys = require "korv.keys"
local log = require "korv.log"
local uv = require "luv"

local Credentials = {}
Credentials.__index = Credentials

-- What `korv.keys` asks.
local GIVEN = { fingerprint = core.public_key, address_bytes = core.address_bytes }

local function load_host_key(path, passphrase, may_make)
  local key, message, name = core.load_key(path, passphrase)
  if key then return key end
  if name ~= "ENOENT" or not may_make then return nil, "host key " .. message, name end
  key, message, name = core.make_key(path)
  if name == "EEXIST" then return core.load_key(path, passphrase) end -- another worker was faster
  if not key then return nil, message:gsub("the key", "the host key", 1), name end
  log.info("made a new host key: %s", path)
  return key
end

local WRITABLE = tonumber("022", 8) -- by the group or by others

-- Whoever can write the file lets in whom he likes. Or nil, message, name.
local function is_guarded(path)
  local stat = uv.fs_stat(path)
  if not stat then return true end -- the reader says why
  if stat.mode & WRITABLE ~= 0 then
    return nil, ("%s: others can write this file (mode %04o), and so let in whom they like; mend it with: chmod go-w %s"):format(path,
      stat.mode & 4095, path), "EPERM"
  end
  if stat.uid ~= 0 and stat.uid ~= uv.getuid() then
    return nil, ("%s belongs to another user (%d), who could let in whom he likes; mend it with: chown %d %s"):format(path, stat.uid,
      uv.getuid(), path), "EPERM"
  end
  return true
end

local function load_authorized(path, may_be_empty)
  local ok, message, name = is_guarded(path)
  if not ok then return nil, message, name end
  return keys.load(path, GIVEN, may_be_empty)
end

-- A list of keys, and what there is to say of each; or nil, message, name.
local function load_host_keys(paths, passphrase, may_make)
  local list, described, by_type = {}, {}, {}
  for i, path in ipairs(paths) do
    local key, message, name = load_host_key(path, passphrase, may_make)
    if not key then return nil, message, name end
    local fingerprint, type = key:describe()
    if by_type[type] then
      return nil, ("the host keys %s and %s are both of type %s: keep one of a type"):format(by_type[type], path, type), "EINVAL"
    end
    by_type[type] = path
    list[i], described[i] = key, { fingerprint = fingerprint, type = type, path = path }
  end
  return list, described
end

local function same_keys(a, b)
  if #a ~= #b then return false end
  for i, key in ipairs(a) do
    if key.fingerprint ~= b[i].fingerprint then return false end
  end
  return true
end

--- Reads the keys that a server begins with; a host key that is missing is made.
-- @tparam table options `host_keys`, a list of files; `authorized_client_keys`, a file; `passphrase` of host keys
-- @treturn ?Credentials `host_keys`: of each its `fingerprint`, `type` and `path`
-- @treturn ?string message
-- @treturn ?string name
local function new(options)
  local list, described, name = load_host_keys(options.host_keys, options.passphrase, true)
  if not list then return nil, described, name end
  local set, message
  set, message, name = load_authorized(options.authorized_client_keys)
  if not set then return nil, message, name end
  for _, problem in ipairs(set.problems) do log.warn("%s", problem) end
  return setmetatable({ options = options, list = list, host_keys = described, authorized = set }, Credentials)
end

--- The peer that a key makes.
-- @tparam string fingerprint
-- @tparam string login what the client typed, which proves nothing
-- @tparam string address
-- @treturn ?table nil where the key may not log in; else what a request sees as its peer
function Credentials:peer(fingerprint, login, address)
  local entry = self.authorized[fingerprint]
  local admitted, why = entry ~= nil, "it is not authorized"
  if entry then admitted, why = keyoptions.admit(entry.options, address, os.time()) end
  if not admitted then
    log.info("refused the key %s from %s: %s", fingerprint, address, why)
    return nil
  end
  local options = entry.options
  return {
    fingerprint = fingerprint, name = entry.name, roles = options.roles or {}, only = options.only, address = address, login = login,
  }
end

--- Whether a key may still be logged in.
-- @tparam string fingerprint
-- @treturn boolean
function Credentials:holds(fingerprint) return self.authorized[fingerprint] ~= nil end

--- How many keys may log in.
-- @treturn int
function Credentials:count()
  local count = -1 -- the list of problems
  for _ in pairs(self.authorized) do count = count + 1 end
  return count
end

--- Reads the authorized keys again. A file that cannot be read changes nothing; one without a key lets nobody in.
-- @treturn ?boolean true
-- @treturn ?string message
function Credentials:read_authorized()
  local set, message = load_authorized(self.options.authorized_client_keys, true)
  if not set then return nil, message end
  for _, problem in ipairs(set.problems) do log.warn("%s", problem) end
  self.authorized = set
  return true
end

--- Reads the host keys again. Where one cannot be used, all stay as they are.
-- @treturn ?table the keys for the core, nil where they are what they were or cannot be used
-- @treturn ?string message, where they cannot
function Credentials:read_host_keys()
  local list, described = load_host_keys(self.options.host_keys, self.options.passphrase, false)
  if not list then return nil, described end
  if same_keys(described, self.host_keys) then return nil end
  self.list, self.host_keys = list, described
  return list
end

return new
