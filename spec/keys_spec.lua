local keys = require "korv.keys"

local function output(command)
  local pipe <close> = io.popen(command)
  return pipe:read("a")
end

local function slurp(path)
  local file <close> = assert(io.open(path, "rb"))
  return file:read("a")
end

local function spill(path, text)
  local file <close> = assert(io.open(path, "wb"))
  file:write(text)
end

-- A folder with a key pair of each kind that ssh-keygen makes without a token; kind to { line, type, blob, comment, fingerprint }.
local folder, made

local KINDS = {
  ed25519 = "-t ed25519", ecdsa256 = "-t ecdsa -b 256", ecdsa384 = "-t ecdsa -b 384", ecdsa521 = "-t ecdsa -b 521",
  rsa = "-t rsa -b 2048", other = "-t ed25519",
}

local function make_key(kind, arguments)
  local path = folder .. "/" .. kind
  assert(os.execute(("ssh-keygen -q %s -N '' -C '%s key' -f %s"):format(arguments, kind, path)))
  local line = slurp(path .. ".pub"):gsub("\n$", "")
  local type, blob, comment = line:match("^(%S+) (%S+) (.*)$")
  local fingerprint = output(("ssh-keygen -l -f %s.pub"):format(path)):match("SHA256:%S+")
  return { path = path, line = line, type = type, blob = blob, comment = comment, fingerprint = fingerprint }
end

setup(function()
  folder = output("mktemp -d"):gsub("\n$", "")
  made = {}
  for kind, arguments in pairs(KINDS) do made[kind] = make_key(kind, arguments) end
end)

teardown(function() os.execute("rm -r " .. folder) end)

-- The base64 text of a key that is sound only as far as its type.
local function hollow(type, content)
  spill(folder .. "/blob", string.pack(">s4", type) .. (content or string.pack(">s4s4", ("k"):rep(32), "ssh:")))
  return output(("base64 -w0 %s/blob"):format(folder))
end

-- What the core does with a key: here ssh-keygen looks at it.
local function fingerprint(type, blob)
  local path = folder .. "/asked.pub"
  spill(path, ("%s %s\n"):format(type, blob))
  local digest = output(("ssh-keygen -l -f %s 2>&1"):format(path)):match("SHA256:%S+")
  if digest then return digest end
  return nil, "the key is not sound"
end

local given = { fingerprint = fingerprint, address_bytes = require("korv.core").address_bytes }

-- The only entry that a text gives, which gives no problem.
local function only(text)
  local entries, problems = keys.parse(text, "F", given)
  assert.same({}, problems)
  assert.equal(1, #entries)
  return entries[1]
end

-- A text gives no entry, and its one problem is as the pattern says.
local function refused(pattern, text)
  local entries, problems = keys.parse(text, "F", given)
  assert.same({}, entries)
  assert.equal(1, #problems)
  assert.matches("^F:1: [^;]+; [^;]+$", problems[1])
  assert.matches(pattern, problems[1])
end

describe("keys.parse", function()
  it("reads each type of key", function()
    for _, kind in ipairs { "ed25519", "ecdsa256", "ecdsa384", "ecdsa521", "rsa" } do
      local key = made[kind]
      assert.same({ type = key.type, blob = key.blob, comment = key.comment, options = {}, file = "F", line = 1, text = key.line },
        only(key.line))
    end
  end)

  it("reads keys of security tokens", function()
    for _, type in ipairs { "sk-ssh-ed25519@openssh.com", "sk-ecdsa-sha2-nistp256@openssh.com" } do
      assert.equal(type, only(("no-touch-required %s %s c"):format(type, hollow(type))).type)
      refused("whether somebody touches the token is not checked here", type .. " " .. hollow(type))
      refused("whether somebody touches the token is not checked here", "restrict " .. type .. " " .. hollow(type))
    end
  end)

  it("reads a line without a comment, and one with spaces", function()
    assert.equal("", only(made.rsa.type .. " " .. made.rsa.blob).comment)
    assert.equal("", only(made.rsa.type .. " " .. made.rsa.blob .. "  ").comment)
    assert.equal("a  b \"c\" # d", only(("%s\t%s \ta  b \"c\" # d \t"):format(made.rsa.type, made.rsa.blob)).comment)
  end)

  it("passes over blank lines and comments, counts them, and takes any line ends", function()
    local text = ("\u{FEFF}# all\r\n\r\n \t \n  # more\n  %s\r\n\t%s"):format(made.rsa.line, made.ed25519.line)
    local entries, problems = keys.parse(text, "F", given)
    assert.same({}, problems)
    assert.same({ 5, 6 }, { entries[1].line, entries[2].line })
    assert.same({ made.rsa.comment, made.ed25519.comment }, { entries[1].comment, entries[2].comment })
  end)

  it("refuses a bad line alone", function()
    local entries, problems = keys.parse(("%s\nrubbish\n%s\n"):format(made.rsa.line, made.ed25519.line), "some/file")
    assert.equal(2, #entries)
    assert.equal(1, #problems)
    assert.matches("^some/file:2: no key of a known type; ", problems[1])
  end)

  it("accepts options that concern nothing here, in any case", function()
    for _, options in ipairs {
      "no-agent-forwarding", "No-Port-Forwarding", "no-X11-forwarding,no-user-rc", "user-rc",
      "restrict,port-forwarding,agent-forwarding,X11-forwarding",
      'permitopen="localhost:80",permitlisten="[::1]:80"', 'tunnel="0"', 'RESTRICT,PermitOpen="a \\"b\\", ssh-rsa c"',
    } do
      local entry = only(options .. " " .. made.rsa.line)
      assert.same({ made.rsa.blob, made.rsa.comment }, { entry.blob, entry.comment })
    end
  end)

  it("keeps whether a terminal is forbidden, the last option winning", function()
    for options, pty in pairs { ["restrict"] = false, ["no-pty"] = false, ["restrict,pty"] = true, ["pty,restrict"] = false } do
      assert.same({ pty = pty }, only(options .. " " .. made.rsa.line).options)
    end
  end)

  it("refuses a key whose options nothing would enforce", function()
    for option, name in pairs {
      ["cert-authority"] = "cert%-authority", ['principals="a"'] = "principals=",
      ["verify-required"] = "verify%-required", ["colour"] = "colour", ["permitopen"] = "permitopen", ['no-pty="yes"'] = "no%-pty=",
    } do
      refused("the option '" .. name .. "' is not supported", option .. " " .. made.rsa.line)
      refused("the option '" .. name .. "' is not supported", "restrict," .. option .. ",no-pty " .. made.rsa.line)
    end
  end)

  it("is not deceived by quotes", function()
    refused("command: ", 'command="x\\" ' .. made.rsa.line .. '",restrict ' .. made.rsa.line)
    refused("option 1 has a value without a closing quote", 'permitopen="x\\" ' .. made.rsa.line)
    refused("option 2 has a value that is not in quotes", "restrict,permitopen=x " .. made.rsa.line)
    refused("neither a comma nor a space follows option 1", 'permitopen="x"y ' .. made.rsa.line)
    refused("option 2 has no name", "restrict, no-pty " .. made.rsa.line)
    refused("option 2 has no name", "restrict,,no-pty " .. made.rsa.line)
    refused("option 1 has no name", ",restrict " .. made.rsa.line)
    refused("no key of a known type", 'permitopen="ssh-rsa AAAA"')
    refused("no key of a known type", "restrict")
    refused("no key of a known type", "restrict ")
    refused("neither a comma nor a space follows option 1", "restrict!")
    refused("neither a comma nor a space follows option 1", 'permitopen="x""')
    refused("option 2 has no name", "restrict,")
    assert.equal(made.rsa.blob, only('permitopen="" ' .. made.rsa.line).blob)
  end)

  it("refuses weak keys and certificates, and says why", function()
    refused("ssh%-dss keys are too weak", "ssh-dss " .. hollow("ssh-dss"))
    refused("ssh%-dss keys are too weak", "restrict ssh-dss " .. hollow("ssh-dss") .. " comment")
    assert(os.execute(("ssh-keygen -q -s %s -I id -n me %s.pub 2>/dev/null"):format(made.other.path, made.ed25519.path)))
    local certificate = slurp(made.ed25519.path .. "-cert.pub"):gsub("\n$", "")
    refused("ssh%-ed25519%-cert%-v01@openssh.com is a certificate", certificate)
  end)

  it("refuses an RSA key of less than 2048 bits", function()
    local function rsa(bits) return "ssh-rsa " .. hollow("ssh-rsa", string.pack(">s4s4", "\1\0\1", bits)) end
    refused("less than 2048 bits is too weak", rsa("\0\xff" .. ("n"):rep(127)))
    refused("less than 2048 bits is too weak", rsa("\x7f" .. ("n"):rep(255)))
    refused("less than 2048 bits is too weak", rsa(("\0"):rep(200) .. ("n"):rep(128)))
    assert.equal("ssh-rsa", only(rsa("\0\x80" .. ("n"):rep(255))).type)
  end)

  it("refuses a key that is of another type, incomplete or no base64", function()
    local key = made.ed25519
    refused("not of the type that is written, ssh%-rsa", "ssh-rsa " .. key.blob)
    refused("not of the type that is written, ssh%-ed25519", "ssh-ed25519 " .. made.rsa.blob)
    refused("not of the type that is written", "ssh-ed25519 AAAA")
    refused("a part of it is missing", "ssh-ed25519 " .. key.blob:sub(1, -2))
    refused("no base64", "ssh-ed25519 " .. key.blob:sub(1, -5) .. "====")
    refused("no base64", "ssh-ed25519 " .. key.blob:sub(1, -5) .. "AA-_")
    refused("no base64", "ssh-ed25519 =" .. key.blob:sub(2))
    refused("no key of a known type", "ssh-ed25519")
    refused("no key of a known type", "ssh-ed448 " .. key.blob)
    refused("no key of a known type", "ssh-ed448 " .. key.blob .. " comment")
  end)

  it("refuses a line with a zero byte, at which sshd would take it to end", function()
    refused("a zero byte", 'command="GET /a\0b" ' .. made.ed25519.line)
    refused("a zero byte", made.ed25519.line .. "\0")
  end)

  it("has its key looked at by the core, which refuses what stands behind one in its base64 text, as ssh-keygen does", function()
    local core, key = require "korv.core", made.ed25519
    assert.equal(key.fingerprint, (core.public_key(key.type, key.blob)))
    local none, problem = core.public_key(key.type, key.blob .. "AAAA")
    assert.same({ nil, "something stands behind the key, in its base64 text" }, { none, problem })
    assert.is_nil((fingerprint(key.type, key.blob .. "AAAA")))
  end)

  it("quotes nothing of a private key, and says what it is", function()
    local secret = slurp(made.ed25519.path)
    local entries, problems = keys.parse(secret, "F")
    assert.same({}, entries)
    assert.matches("maybe a private key; list the line of the .pub file", problems[1])
    for line in secret:gmatch("[^\n]+") do
      for part in line:gmatch("[%w=]+") do
        if #part > 12 then assert.is_nil(table.concat(problems, "\n"):lower():find(part:lower(), 1, true)) end
      end
    end
  end)
end)

describe("keys.load", function()
  local path

  before_each(function() path = folder .. "/authorized_keys" end)

  it("maps fingerprints to entries", function()
    spill(path, ("restrict %s\n\n%s\n"):format(made.rsa.line, made.ed25519.line))
    local set = assert(keys.load({ path }, given))
    assert.same({
      [made.rsa.fingerprint] = { name = "rsa key", type = "ssh-rsa", options = { pty = false }, file = path, line = 1,
        text = "restrict " .. made.rsa.line },
      [made.ed25519.fingerprint] = { name = "ed25519 key", type = "ssh-ed25519", options = {}, file = path, line = 3,
        text = made.ed25519.line },
      problems = {},
    }, set)
  end)

  it("reports problems in the order of the lines, whoever found them", function()
    local broken = "ssh-ed25519 " .. made.ed25519.blob:sub(1, -9)
    spill(path, ("%s\n%s\nrubbish\n%s\nmore rubbish\n"):format(broken, made.rsa.line, broken))
    local set = assert(keys.load({ path }, given))
    assert.equal(2, set[made.rsa.fingerprint].line)
    assert.equal(4, #set.problems)
    for i, line in ipairs { 1, 3, 4, 5 } do assert.equal(line, tonumber(set.problems[i]:match(":(%d+): "))) end
    assert.equal(path .. ":1: the key is not sound; copy the whole line from the .pub file again, or make a new key", set.problems[1])
  end)

  it("lets the first of two lines with one key win", function()
    spill(path, ("no-pty %s first\n%s second\n"):format(made.rsa.line, made.rsa.line))
    local set = assert(keys.load({ path }, given))
    assert.same({ 1, "rsa key first", { pty = false } },
      { set[made.rsa.fingerprint].line, set[made.rsa.fingerprint].name, set[made.rsa.fingerprint].options })
    assert.same({ path .. ":2: the same key as in line 1, which counts; remove one of them" }, set.problems)
  end)

  it("lets a later line in where an earlier one with the key was refused", function()
    spill(path, ('from="nowhere.example" %s\n%s\n'):format(made.rsa.line, made.rsa.line))
    assert.equal(2, assert(keys.load({ path }, given))[made.rsa.fingerprint].line)
  end)

  it("shows how to fill a file that is missing", function()
    local set, message, name = keys.load({ folder .. "/none" }, given)
    assert.is_nil(set)
    assert.equal("ENOENT", name)
    assert.truthy(message:find(folder .. "/none does not exist", 1, true))
    assert.truthy(message:find("`cat ~/.ssh/id_ed25519.pub >> " .. folder .. "/none`", 1, true))
  end)

  it("shows how to fill one that is empty", function()
    path = folder .. "/it's empty"
    spill(path, "# nobody\n\n")
    local set, message, name = keys.load({ path }, given)
    assert.is_nil(set)
    assert.equal("ENOKEY", name)
    assert.truthy(message:find(path .. " holds no key", 1, true))
    assert.truthy(message:find("`cat ~/.ssh/id_ed25519.pub >> '" .. folder .. "/it'\\''s empty'`", 1, true))
  end)

  it("tells why none of the keys can be used", function()
    spill(path, "rubbish\n")
    assert.same({ nil, "no key can be used, so nobody could log in: " .. path
      .. ":1: no key of a known type; a line is [options] type key [comment], as in a .pub file", "ENOKEY" },
      { keys.load({ path }, given) })
    spill(path, "rubbish\nssh-dss " .. hollow("ssh-dss"))
    assert.matches(" %(and 1 more like it%)$", (select(2, keys.load({ path }, given))))
  end)

  it("tells what cannot be read", function()
    local set, message, name = keys.load({ folder }, given)
    assert.same({ nil, folder .. ": not a file", "EACCES" }, { set, message, name })
  end)

  it("does not wait for who writes a pipe", function()
    path = folder .. "/pipe"
    assert(os.execute("mkfifo -m 600 " .. path))
    assert.same({ nil, path .. ": not a file", "EACCES" }, { keys.load({ path }, given) })
  end)

  it("reads several files as one, and names the file of a problem", function()
    local second = folder .. "/second keys"
    spill(path, made.rsa.line .. "\n")
    spill(second, ("%s\nrubbish\n%s\n"):format(made.rsa.line, made.ed25519.line))
    local set = assert(keys.load({ path, second }, given))
    assert.same({ path, second }, { set[made.rsa.fingerprint].file, set[made.ed25519.fingerprint].file })
    assert.equal(2, #set.problems)
    assert.equal(("%s:1: the same key as in %s:1, which counts; remove one of them"):format(second, path), set.problems[1])
    assert.equal(second .. ":2: ", set.problems[2]:sub(1, #second + 4))
    local none, _, name = keys.load({ path, folder .. "/none" }, given)
    assert.same({ nil, "ENOENT" }, { none, name })
    spill(path, "")
    assert.is_table(keys.load({ path, second }, given))
    spill(second, "")
    assert.matches("authorized_keys %+ .*/second keys holds no key", (select(2, keys.load({ path, second }, given))))
  end)

  it("trusts no file that others can write, and says how to mend it", function()
    spill(path, made.rsa.line)
    for mode, refused_mode in pairs { ["600"] = false, ["644"] = false, ["664"] = true, ["620"] = true, ["602"] = true, ["606"] = true } do
      assert(os.execute(("chmod %s %s"):format(mode, path)))
      local set, message, name = keys.load({ path }, given)
      assert.equal(refused_mode, set == nil, mode)
      if refused_mode then
        assert.equal("EPERM", name)
        assert.matches("others can write this file %(mode 0" .. mode .. "%), .*; mend it with: chmod go%-w ", message)
        assert(os.execute(message:match "mend it with: (.*)$"))
        assert.is_table(keys.load({ path }, given))
      end
    end
  end)

  it("trusts no file of another user", function()
    if require("luv").getuid() ~= 0 then return pending "only root can give files away" end
    spill(path, made.rsa.line)
    assert(os.execute("chown 65534 " .. path))
    local set, message, name = keys.load({ path }, given)
    assert.same({ nil, "EPERM" }, { set, name })
    assert.matches("belongs to another user %(65534%), .*; mend it with: chown 0 ", message)
    assert(os.execute(message:match "mend it with: (.*)$"))
    assert.is_table(keys.load({ path }, given))
  end)
end)
