--- The client's private keys: those that were named, or those that ssh would try.
-- @module korv.identity

local core = require "korv.core"
local uv = require "luv"

local identity = {}

local DEFAULT_KEYS = { "id_ed25519", "id_ecdsa", "id_rsa" }

--- A path in the user's ~/.ssh: HOME's, or without it (as in a service) that of the user database.
-- @tparam string name
-- @treturn string
function identity.home(name) return (uv.os_homedir() or ".") .. "/.ssh/" .. name end

--- The user's name, as the environment says it.
-- @treturn ?string nil where it says none
function identity.user()
  local name = os.getenv "USER"
  return name ~= "" and name or nil
end

local function load_named(paths, passphrase)
  local list = {}
  for i, path in ipairs(paths) do
    local key, message, name = core.load_key(path, passphrase)
    if not key then
      local encrypted = message:find("encrypted", 1, true) and not passphrase
      if encrypted then message = message .. ", or let ssh and its agent use it (--ssh, ssh = true)" end
      return nil, "client key " .. message, name
    end
    list[i] = key
  end
  return list
end

-- One that is not there, or cannot be used, is passed over as ssh does.
local function load_default(passphrase)
  local list, reason = {}, nil
  for _, name in ipairs(DEFAULT_KEYS) do
    local key, message, code = core.load_key(identity.home(name), passphrase)
    list[#list + 1] = key
    if not key and code ~= "ENOENT" then reason = reason or message end
  end
  if #list > 0 then return list end
  local none = ("there is no key in %s: name one (-i FILE, client_keys), or make one with `ssh-keygen -t ed25519`"):format(identity.home "")
  return nil, reason or none, "ENOKEY"
end

--- Reads private keys.
-- @tparam ?{string,...} paths nil: the ones in ~/.ssh that ssh would try
-- @tparam ?string passphrase
-- @treturn ?table the core's keys
-- @treturn ?string message
-- @treturn ?string name
function identity.load(paths, passphrase)
  if paths then return load_named(paths, passphrase) end
  return load_default(passphrase)
end

return identity
