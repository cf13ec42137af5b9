--- The options before a key in authorized_keys, as sshd(8) describes them: what each demands, and whether a log-in meets it. An option that
-- is not known here refuses its key, because nothing would enforce it. Knows nothing of files, and of addresses what it is given.
-- @module korv.keyoptions

local keyoptions = {}

local ROLE = "^[%w_.:-]+$"
local VERBS = { GET = true, STORE = true, UPDATE = true, DELETE = true, ["*"] = true }

-- Patterns: * for any text, ? for any character --------------------------------------------------------------------------------------

local function escaped(text) return (text:gsub("[^%w?]", "%%%0"):gsub("%?", ".")) end

--- A pattern of sshd's, as a function that says whether a text matches. What a client sends is matched in one go from left to right: each
-- piece between stars is sought behind the one before, so no text makes it slow, as Lua's own `.*` would be.
-- @tparam string text with `*` and `?`
-- @treturn function
function keyoptions.pattern(text)
  local first, rest = text:match "^([^*]*)(.*)$"
  if rest == "" then
    local whole = "^" .. escaped(first) .. "$"
    return function(subject) return subject:find(whole) ~= nil end
  end
  local middle, last = rest:match "^(.*)%*([^*]*)$"
  local head, tail, pieces = "^" .. escaped(first), escaped(last) .. "$", {}
  for piece in middle:gmatch "[^*]+" do pieces[#pieces + 1] = escaped(piece) end
  return function(subject)
    local _, at = subject:find(head)
    for _, piece in ipairs(pieces) do
      if at then _, at = subject:find(piece, at + 1) end
    end
    return at ~= nil and #subject - at >= #last and subject:find(tail, #subject - #last + 1) ~= nil
  end
end

local function split(text)
  local list = {}
  for piece in (text .. ","):gmatch "([^,]*)," do list[#list + 1] = piece:match "^%s*(.-)%s*$" end
  return list
end

-- from= --------------------------------------------------------------------------------------------------------------------------------

-- Whether the first bits of two addresses, as bytes, are the same.
local function same_prefix(a, b, bits)
  if #a ~= #b then return false end
  local whole, rest = bits // 8, bits % 8
  if a:sub(1, whole) ~= b:sub(1, whole) then return false end
  if rest == 0 then return true end
  return (a:byte(whole + 1) ~ b:byte(whole + 1)) >> (8 - rest) == 0
end

local function host_bits_are_zero(network, bits)
  local whole = bits // 8
  if bits % 8 > 0 and network:byte(whole + 1) << (bits % 8) & 255 ~= 0 then return false end
  return not network:find("[^\0]", whole + 1 + (bits % 8 > 0 and 1 or 0))
end

-- The function that decides whether an address, as text and as bytes, is meant: a network, an address, or a pattern of one. nil: what the
-- text is would have to be looked up, and one that is negated and never found would let in whom it is to keep out.
local function source(text, address_bytes)
  local bytes = address_bytes(text)
  if bytes then return function(_, own) return own == bytes end end
  if not text:find "[*?]" or not (text:find "^[%d.*?]+$" or text:find "^[%x.:*?]*:[%x.:*?]*$") then return nil end
  local matches = keyoptions.pattern(text:lower())
  return function(address) return matches(address) end
end

-- Or nil and what is wrong with it.
local function network(text, address_bytes)
  local head, bits = text:match "^(.*)/(%d+)$"
  local bytes = head and address_bytes(head)
  bits = math.tointeger(tonumber(bits))
  if not bytes or not bits or bits > #bytes * 8 then return nil, ("'%s' is no network"):format(text) end
  if not host_bits_are_zero(bytes, bits) then return nil, ("'%s' has bits beyond its length"):format(text) end
  return function(_, own) return same_prefix(own, bytes, bits) end
end

local function read_source(text, address_bytes)
  if text:find("/", 1, true) then return network(text, address_bytes) end
  local matches = source(text, address_bytes)
  if matches then return matches end
  return nil, ("'%s' is no address, pattern of one or network; host names are not looked up"):format(text)
end

-- One that is negated and matches refuses, whatever else matches.
local function read_from(options, value, given)
  if options.from then return "from: it is given twice" end
  local list = {}
  for i, piece in ipairs(split(value)) do
    local negated, text = piece:match "^(!?)(.*)$"
    local matches, what = read_source(text, given.address_bytes)
    if not matches then return "from: " .. what end
    list[i] = { matches = matches, negated = negated == "!" }
  end
  options.from = function(address)
    local own, found = given.address_bytes(address), false
    for _, one in ipairs(own and list or {}) do
      if one.matches(address, own) then
        if one.negated then return false end
        found = true
      end
    end
    return found
  end
end

-- expiry-time= -------------------------------------------------------------------------------------------------------------------------

local FIELDS = { [8] = "^(%d%d%d%d)(%d%d)(%d%d)$", [12] = "^(%d%d%d%d)(%d%d)(%d%d)(%d%d)(%d%d)$",
  [14] = "^(%d%d%d%d)(%d%d)(%d%d)(%d%d)(%d%d)(%d%d)$" }

-- Seconds from 1970 to a time of UTC's. (Years begin in March here, so that a leap day is a year's last.)
local function utc_seconds(time)
  local year = time.month > 2 and time.year or time.year - 1
  local day = (153 * ((time.month + 9) % 12) + 2) // 5 + time.day - 1
  local days = 365 * year + year // 4 - year // 100 + year // 400 + day - 719468
  return ((days * 24 + time.hour) * 60 + time.min) * 60 + time.sec
end

-- Whether the calendar and the clock have it: the 30th of February comes back from seconds as another day.
local function exists(time)
  local same = os.date("!*t", utc_seconds(time))
  for name, value in pairs(time) do
    if same[name] ~= value then return false end
  end
  return true
end

-- YYYYMMDD[HHMM[SS]][Z]; without Z in the machine's time zone. nil: it is none.
local function read_time(text)
  local digits, zone = text:match "^(%d+)([Zz]?)$"
  local pattern = digits and FIELDS[#digits]
  if not pattern then return nil end
  local year, month, day, hour, minute, second = digits:match(pattern)
  local time = { year = tonumber(year), month = tonumber(month), day = tonumber(day), hour = tonumber(hour or 0),
    min = tonumber(minute or 0), sec = tonumber(second or 0) }
  if not exists(time) then return nil end
  return zone == "" and os.time(time) or utc_seconds(time)
end

local function read_expiry(options, value)
  local time = read_time(value)
  if not time then return ("expiry-time: '%s' is no time; it is YYYYMMDD[HHMM[SS]], and a Z for UTC"):format(value) end
  options.expires = math.min(time, options.expires or time)
end

-- command= and environment= ------------------------------------------------------------------------------------------------------------

-- "GET /status*,* /own/*"
local function read_command(options, value)
  if options.only then return "command: it is given twice" end
  local only = {}
  for i, piece in ipairs(split(value)) do
    local verb, resource = piece:match "^(%S+)%s+(/%S*)$"
    verb = verb and verb:upper()
    if not VERBS[verb] then
      return ("command: '%s' is no verb and resource; it locks a key to endpoints, as in command=\"GET /status*,STORE /a/*\""):format(piece)
    end
    only[i] = { verb = verb, resource = resource, matches = keyoptions.pattern(resource) }
  end
  options.only = only
end

local function read_environment(options, value)
  local name, text = value:match "^([^=]*)=(.*)$"
  if name ~= "KORV_ROLES" then return "environment: nothing reads this variable; KORV_ROLES=role,role gives a key its roles" end
  if options.roles then return "environment: KORV_ROLES is given twice" end
  local roles = {}
  for i, role in ipairs(split(text)) do
    if not role:find(ROLE) then return ("environment: '%s' is no role; a role is letters, digits and . _ : -"):format(role) end
    roles[i] = role
  end
  options.roles = roles
end

-- ----------------------------------------------------------------------------------------------------------------------------------------

local function harmless() end
local function forbid_pty(options) options.pty = false end
local function allow_pty(options) options.pty = true end
local function allow_untouched(options) options.untouched = true end

-- What each does to the table of options; one that takes a value has a = behind its name and returns what is wrong with the value. The
-- harmless ones forbid what a server here never does, or allow it.
local HANDLERS = {
  ["from="] = read_from,
  ["expiry-time="] = read_expiry,
  ["command="] = read_command,
  ["environment="] = read_environment,
  ["restrict"] = forbid_pty,
  ["no-pty"] = forbid_pty,
  ["pty"] = allow_pty,
  ["no-agent-forwarding"] = harmless,
  ["agent-forwarding"] = harmless,
  ["no-port-forwarding"] = harmless,
  ["port-forwarding"] = harmless,
  ["no-user-rc"] = harmless,
  ["user-rc"] = harmless,
  ["no-x11-forwarding"] = harmless,
  ["x11-forwarding"] = harmless,
  ["no-touch-required"] = allow_untouched, -- verify-required asks for more than can be seen here, so it is refused
  ["permitopen="] = harmless,
  ["permitlisten="] = harmless,
  ["tunnel="] = harmless,
}

local REFUSED = {
  ["cert-authority"] = "certificates are not verified, so no authority is trusted; list the keys themselves",
}

--- What a list of options makes.
-- @tparam {table,...} list of `{ name, value }`; the name in lower case, with a `=` behind it where there is a value
-- @tparam table given `address_bytes`: a function that makes bytes of an address in text, nil where it is none
-- @treturn ?table `pty` (false: no terminal), `untouched` (a security token may sign by itself), `from` (a function that judges an
-- address), `expires` (seconds since 1970), `only` (the endpoints that it is locked to: a list of `{ verb, resource, matches }`), `roles`
-- (a list); nil where an option refuses the key
-- @treturn ?string what is wrong
function keyoptions.read(list, given)
  local options = {}
  for _, option in ipairs(list) do
    local handler = HANDLERS[option.name]
    if not handler then
      local why = REFUSED[option.name] or "the key is refused; remove it if the key may be used without"
      return nil, ("the option '%s' is not supported: %s"):format(option.name, why)
    end
    local what = handler(options, option.value, given)
    if what then return nil, what end
  end
  return options
end

--- Whether a log-in meets the options.
-- @tparam table options
-- @tparam string address the client's
-- @tparam int now seconds since 1970
-- @treturn boolean
-- @treturn ?string why not, as what may follow "the key"
function keyoptions.admit(options, address, now)
  if options.expires and now >= options.expires then return false, "has expired" end
  if options.from and not options.from(address) then return false, "may not be used from this address" end
  return true
end

return keyoptions
