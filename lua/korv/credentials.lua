--- A server's keys: which ones it shows to its clients, and whose let them in. Both are files, which can be read again while it serves;
-- in place of the latter a function may be asked. Knows nothing of connections.
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

-- Whoever owns the file can read it. Or nil, message, name.
local function is_secret(path)
  local stat = uv.fs_stat(path)
  if not stat or stat.uid == 0 or stat.uid == uv.getuid() then return true end -- one that is not there is made, or named
  return nil, ("%s belongs to another user (%d), who can read it; mend it with: chown %d %s"):format(path, stat.uid, uv.getuid(), path),
    "EPERM"
end

local function load_host_key(path, passphrase, may_make)
  local ok, why, code = is_secret(path)
  if not ok then return nil, "host key " .. why, code end
  local key, message, name = core.load_key(path, passphrase)
  if key then return key end
  if name ~= "ENOENT" or not may_make then return nil, "host key " .. message, name end
  key, message, name = core.make_key(path)
  if name == "EEXIST" then return core.load_key(path, passphrase) end -- another worker was faster
  if not key then return nil, message:gsub("the key", "the host key", 1), name end
  log.info("made a new host key: %s", path)
  return key
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

local function load_authorized(options, may_be_empty)
  if options.authorize then return { problems = {} } end
  return keys.load(options.authorized_client_keys, GIVEN, may_be_empty)
end

--- Reads the keys that a server begins with; a host key that is missing is made.
-- @tparam table options `host_keys`, a list of files; `passphrase` of these; `authorized_client_keys`, a list of files, or `authorize`, a
-- function that is asked in place of these: see `korv.server`
-- @treturn ?Credentials `host_keys`: of each its `fingerprint`, `type` and `path`
-- @treturn ?string message
-- @treturn ?string name
local function new(options)
  local list, described, name = load_host_keys(options.host_keys, options.passphrase, true)
  if not list then return nil, described, name end
  local set, message
  set, message, name = load_authorized(options)
  if not set then return nil, message, name end
  for _, problem in ipairs(set.problems) do log.warn("%s", problem) end
  return setmetatable({
    options = options, list = list, host_keys = described, authorized = set,
    granted = setmetatable({}, { __mode = "k" }), -- of each peer that has logged in: with which key, and what that meant
  }, Credentials)
end

-- Who may log in ----------------------------------------------------------------------------------------------------------------------

local GRANT = { name = "string", roles = "table" }

-- What a function of the app's may return for a key: nil, or a name and roles.
local function check_grant(grant)
  if type(grant) ~= "table" then error(("authorize must return nil or a table { name, roles }, not a %s"):format(type(grant)), 0) end
  for name, value in pairs(grant) do
    if type(value) ~= GRANT[name] then error(("authorize returned a table with %s = %s"):format(tostring(name), tostring(value)), 0) end
  end
  for _, role in ipairs(grant.roles or {}) do
    if type(role) ~= "string" then error(("authorize returned a role that is a %s"):format(type(role)), 0) end
  end
end

-- A grant is `name`, `roles`, `only`, `pty`, and `mark`, a text that is another one where any of these is. Or nil and why there is none.
local function ask_function(self, key, login, address)
  local copy = { type = key.type, blob = key.blob, fingerprint = key.fingerprint }
  local given = self.options.authorize(copy, { address = address, login = login })
  if not given then return nil, "is not authorized" end
  check_grant(given)
  local name, roles = given.name or "", given.roles or {}
  return { name = name, roles = roles, mark = table.concat({ name, table.unpack(roles) }, "\0") }
end

local function ask_files(self, key, address)
  local entry = self.authorized[key.fingerprint]
  if not entry then return nil, "is not authorized" end
  local options = entry.options
  local ok, why = keyoptions.admit(options, address, os.time())
  if not ok then return nil, why end
  return { name = entry.name, roles = options.roles or {}, only = options.only, pty = options.pty, mark = entry.text }
end

local function ask(self, key, login, address)
  if self.options.authorize then return ask_function(self, key, login, address) end
  return ask_files(self, key, address)
end

--- Whether a key may log in, and as whom.
-- @tparam table key `type`, `blob` (base64) and `fingerprint`
-- @tparam string login what the client typed, which proves nothing
-- @tparam string address
-- @tparam boolean verified whether the client has signed with it
-- @treturn ?table nil where the key may not log in; else what a request sees as its peer
-- @treturn ?boolean whether it may have terminals
function Credentials:admit(key, login, address, verified)
  local grant, why = ask(self, key, login, address)
  if not grant then
    log.info("refused the key %s from %s: it %s", key.fingerprint, address, why)
    return nil
  end
  local peer = { fingerprint = key.fingerprint, name = grant.name, roles = grant.roles, only = grant.only, address = address,
    login = login }
  if verified then self.granted[peer] = { key = key, mark = grant.mark } end
  return peer, grant.pty ~= false
end

--- Whether a peer that has logged in may stay, after the keys were read again.
-- @tparam table peer
-- @treturn ?string why not, as what may follow "the key"; nil where it may
function Credentials:parting(peer)
  local before = self.granted[peer]
  local grant, why = ask(self, before.key, peer.login, peer.address)
  if not grant then return why == "is not authorized" and "is no longer authorized" or why end
  if grant.mark ~= before.mark then return "may do something else now" end
end

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
  local set, message = load_authorized(self.options, true)
  if not set then return nil, message end
  for _, problem in ipairs(set.problems) do log.warn("%s", problem) end
  self.authorized = set
  return true
end

--- Reads the host keys again. Where one cannot be used, all stay as they are.
-- @tparam function use called with the keys for the core, where they are not what they were; it returns true where it has taken them, or
-- nil and a message
-- @treturn ?boolean whether they have changed; nil where they cannot be used
-- @treturn ?string message, where they cannot
function Credentials:read_host_keys(use)
  local list, described = load_host_keys(self.options.host_keys, self.options.passphrase, false)
  if not list then return nil, described end
  if same_keys(described, self.host_keys) then return false end
  local ok, message = use(list)
  if not ok then return nil, message end
  self.list, self.host_keys = list, described
  return true
end

return new
