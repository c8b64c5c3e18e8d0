// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.22;

interface Token {
    function transfer(address to, uint256 value) external returns (bool);
    function transferFrom(address from, address to, uint256 value) external returns (bool);
}

/// For tests alone: answers and behaves as the payment contracts that are deployed do, with what is wrong about them. Written from
/// their description, with their ABI, in which the operator is the "provider".
contract PrepaidChannels {
    struct Channel {
        uint256 investedByPublisher;
        uint256 withdrawnByProvider;
        uint256 unlockTime;
        uint256 unlockedAt;
    }

    error AlreadyExists();
    error DoesNotExist();
    error AmountRequired();
    error ChannelLocked();
    error InsufficientFunds();

    event UnlockTimerStarted(address indexed publisher, address indexed provider, bytes32 indexed podId, uint256 unlockedAt);
    event Deposited(address indexed publisher, address indexed provider, bytes32 indexed podId, uint256 amount);
    event Unlocked(address indexed publisher, address indexed provider, bytes32 indexed podId, uint256 amount);
    event Withdrawn(address indexed publisher, address indexed provider, bytes32 indexed podId, uint256 amount);
    event ChannelClosed(address indexed publisher, address indexed provider, bytes32 indexed podId);

    Token public immutable token;
    mapping(address publisher => mapping(address provider => mapping(bytes32 podId => Channel))) public channels;

    constructor(Token paidIn) {
        token = paidIn;
    }

    function createChannel(address provider, bytes32 podId, uint256 unlockTime, uint256 initialAmount) external {
        require(initialAmount > 0, AmountRequired());
        Channel storage channel = channels[msg.sender][provider][podId];
        require(channel.investedByPublisher == 0, AlreadyExists());
        assert(channel.withdrawnByProvider == 0);
        channel.investedByPublisher = initialAmount;
        channel.unlockTime = unlockTime;
        // The lock bypass: unlockedAt stays what it was in an emptied channel.
        take(initialAmount);
        emit Deposited(msg.sender, provider, podId, initialAmount);
    }

    function deposit(address provider, bytes32 podId, uint256 amount) external {
        require(amount > 0, AmountRequired());
        Channel storage channel = channels[msg.sender][provider][podId];
        require(channel.investedByPublisher > 0, DoesNotExist());
        channel.investedByPublisher += amount;
        channel.unlockedAt = 0;
        take(amount);
        emit Deposited(msg.sender, provider, podId, amount);
    }

    function unlock(address provider, bytes32 podId) external {
        Channel storage channel = channels[msg.sender][provider][podId];
        require(channel.investedByPublisher > 0, DoesNotExist());
        uint256 unlockedAt = block.timestamp + channel.unlockTime;
        if (channel.unlockedAt < unlockedAt) channel.unlockedAt = unlockedAt;
        emit UnlockTimerStarted(msg.sender, provider, podId, channel.unlockedAt);
    }

    function withdrawUnlocked(address provider, bytes32 podId) external {
        Channel storage channel = unlocked(provider, podId);
        uint256 rest = channel.investedByPublisher - channel.withdrawnByProvider;
        channel.investedByPublisher = channel.withdrawnByProvider;
        give(msg.sender, rest);
        emit Unlocked(msg.sender, provider, podId, rest);
    }

    function closeChannel(address provider, bytes32 podId) external {
        Channel storage channel = unlocked(provider, podId);
        uint256 rest = channel.investedByPublisher - channel.withdrawnByProvider;
        delete channels[msg.sender][provider][podId];
        give(msg.sender, rest);
        emit Unlocked(msg.sender, provider, podId, rest);
        emit ChannelClosed(msg.sender, provider, podId);
    }

    function withdrawUpTo(address publisher, bytes32 podId, uint256 total, address to) public {
        Channel storage channel = channels[publisher][msg.sender][podId];
        require(total <= channel.investedByPublisher, InsufficientFunds());
        require(total > channel.withdrawnByProvider, AmountRequired());
        uint256 amount = total - channel.withdrawnByProvider;
        channel.withdrawnByProvider = total;
        // Settled is settled: the publisher need not wait any longer.
        if (channel.unlockedAt != 0) channel.unlockedAt = block.timestamp;
        give(to, amount);
        emit Withdrawn(publisher, msg.sender, podId, amount);
    }

    function withdraw(address publisher, bytes32 podId, uint256 amount, address to) external {
        withdrawUpTo(publisher, podId, channels[publisher][msg.sender][podId].withdrawnByProvider + amount, to);
    }

    function available(address publisher, address provider, bytes32 podId) external view returns (uint256) {
        Channel storage channel = channels[publisher][provider][podId];
        return channel.investedByPublisher - channel.withdrawnByProvider;
    }

    function withdrawn(address publisher, address provider, bytes32 podId) external view returns (uint256) {
        return channels[publisher][provider][podId].withdrawnByProvider;
    }

    function unlocked(address provider, bytes32 podId) private view returns (Channel storage channel) {
        channel = channels[msg.sender][provider][podId];
        require(channel.investedByPublisher > 0, DoesNotExist());
        require(channel.unlockedAt != 0 && channel.unlockedAt <= block.timestamp, ChannelLocked());
    }

    function take(uint256 amount) private {
        require(token.transferFrom(msg.sender, address(this), amount));
    }

    function give(address to, uint256 amount) private {
        require(token.transfer(to, amount));
    }
}
